-- Ends leased entries: reply, escalate, sample, dead-letter, count, ack and delete, in one step.
--
-- KEYS[1] source stream       KEYS[2] byte counter of the source
-- KEYS[3] next stream         KEYS[4] byte counter of the next stream: where an escalation goes
-- KEYS[5] shadow stream       KEYS[6] dead letter stream     KEYS[7] stats hash
-- KEYS[8..] reply streams
-- ARGV[1] group  [2] consumer  [3] reply_ttl_ms  [4], [5] most entries and bytes of the next stream
-- ARGV[6] shadow_entries_max  [7] dead_entries_max
-- ARGV[8..] per entry eleven values:
--   id, op, reply key index (0: nobody to answer), reply bytes, counters ("a,b"), sample key,
--   truth key, truth bytes, payload size, dead reason, dead message
--   op: "reply"     ends here with these bytes
--       "escalate"  goes to the next stream, bytes attached as the best answer so far
--       "both"      escalates, and the bytes go to the client as a provisional answer
--       "dead"      goes to the dead letter stream; the bytes, if any, tell the client
-- Returns per entry: "ok", "lost" (the lease is another worker's now: nothing was done for it) or
-- "full" (no room in the next stream: nothing was done; finish it in another way).
--
-- The fence: only entries that this consumer still holds are touched. XPENDING by consumer walks
-- that consumer's own list, so its cost is the size of the lease and not of the queue.
local source, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local reply_ttl_ms = tonumber(ARGV[3])
local next_entries = tonumber(redis.call('XLEN', KEYS[3]))
local next_bytes = tonumber(redis.call('GET', KEYS[4]) or '0')
local held = {}
local pending = redis.pcall('XPENDING', source, group, '-', '+', 100000, consumer)
-- A server that was flushed has no group, and nobody holds anything; other errors are errors.
if pending.err and not string.find(tostring(pending.err), 'NOGROUP') then return pending end
for _, row in ipairs(pending) do held[row[1]] = row[4] end

-- Out of memory, a server refuses a script whose first write needs memory, and lets one go on that
-- began with another. This one frees more than it writes: a full queue must stay drainable.
redis.call('XACK', source, group, '0-0')

local out, done, tally, touched, escalated_bytes, freed_bytes = {}, {}, {}, {}, 0, 0
local function count(name) tally[name] = (tally[name] or 0) + 1 end
-- The payload, or false when somebody deleted the entry under its lease.
local function request_of(id)
  local row = redis.call('XRANGE', source, id, id)[1]
  if not row then return false end
  for i = 1, #row[2], 2 do if row[2][i] == 'request' then return row[2][i + 1] end end
  return ''
end
local function reply(index, bytes)
  redis.call('XADD', KEYS[7 + index], '*', 'reply', bytes)
  touched[7 + index] = true
end

for i = 8, #ARGV, 11 do
  local id, op, index, bytes = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local size = tonumber(ARGV[i + 8])
  local status = 'ok'
  local request = held[id] and (op ~= 'reply' or ARGV[i + 5] ~= '') and request_of(id)
  if not held[id] or not (request or op == 'reply') then
    status = 'lost'
  elseif op == 'escalate' or op == 'both' then
    if next_entries + 1 > tonumber(ARGV[4])
        or next_bytes + escalated_bytes + size > tonumber(ARGV[5]) then
      status = 'full'
    else
      redis.call('XADD', KEYS[3], '*', 'request', request, 'answer', bytes)
      next_entries, escalated_bytes = next_entries + 1, escalated_bytes + size
      if op == 'both' then reply(index, bytes) end
    end
  elseif op == 'dead' then
    redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[7], '*', 'reason', ARGV[i + 9],
      'message', ARGV[i + 10], 'deliveries', held[id], 'source', source, 'entry', id,
      'sha1', redis.sha1hex(request), 'request', request)
    if index > 0 then reply(index, bytes) end
  elseif index > 0 then
    reply(index, bytes)
  end
  if status == 'ok' then
    if ARGV[i + 5] ~= '' and request then
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[6], '*', 'kind', 'prediction', 'key', ARGV[i + 5],
        'request', request, 'answer', bytes)
      count('shadowed')
    end
    if ARGV[i + 6] ~= '' then
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[6], '*', 'kind', 'truth', 'key', ARGV[i + 6],
        'vector', ARGV[i + 7])
    end
    for name in string.gmatch(ARGV[i + 4], '[^,]+') do count(name) end
    freed_bytes = freed_bytes + size
    done[#done + 1] = id
    held[id] = nil
  else
    count(status)
  end
  out[#out + 1] = status
end

for first = 1, #done, 1000 do
  local ids = {unpack(done, first, math.min(first + 999, #done))}
  redis.call('XACK', source, group, unpack(ids))
  redis.call('XDEL', source, unpack(ids))
end
if escalated_bytes > 0 then redis.call('INCRBY', KEYS[4], escalated_bytes) end
-- An empty stream holds no bytes: the counter heals itself if it ever went wrong.
if redis.call('XLEN', source) == 0 then redis.call('DEL', KEYS[2])
elseif freed_bytes > 0 then redis.call('DECRBY', KEYS[2], freed_bytes) end
for index in pairs(touched) do redis.call('PEXPIRE', KEYS[index], reply_ttl_ms) end
for name, n in pairs(tally) do redis.call('HINCRBY', KEYS[7], name, n) end
return out
