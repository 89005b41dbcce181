-- Ends leased entries: reply, escalate, sample, dead-letter, count, ack and delete, in one step.
--
-- KEYS[1..5] streams by place: requests:high, requests, requests:low, fallback, fallback:secondary
-- KEYS[6..10] their byte counters   KEYS[11] shadow stream   KEYS[12] dead letter stream
-- KEYS[13] stats hash               KEYS[14..] reply streams
-- ARGV[1] group  [2] consumer  [3] reply_ttl_ms  [4] shadow_entries_max  [5] dead_entries_max
-- ARGV[6], [7] most entries and bytes of the fallback stream   [8], [9] of the secondary one
-- ARGV[10] prefix of the seen keys   [11] the places that occur below, one digit each
-- ARGV[12..] per entry ten values:
--   place, id, op, reply number (0: nobody to answer), reply bytes, counters ("a,b=17": 1 and 17),
--   sample ("k key": taken at the rate 1/k), truth key, truth bytes, payload size
--   op: "reply"     ends here with these bytes
--       "escalate"  goes to the next stream, bytes attached as the best answer so far
--       "both"      escalates, and the bytes go to the client as a provisional answer
--       "dead"      goes to the dead letter stream; the bytes, if any, tell the client; three more
--                   values follow: reason, message, sha1 of the payload
-- Returns per entry: "ok", "lost" (the lease is another worker's now: nothing was done for it) or
-- "full" (no room in the next stream, or none is next: nothing was done; finish it in another way).
--
-- The fence: only entries that this consumer still holds are touched. XPENDING by consumer walks
-- that consumer's own list, so its cost is the size of the lease and not of the queue.
local call, group, consumer, seen_prefix = redis.call, ARGV[1], ARGV[2], ARGV[10]
local held, done, freed = {}, {}, {}
for digit in string.gmatch(ARGV[11], '%d') do
  local place = tonumber(digit)
  local pending = redis.pcall('XPENDING', KEYS[place], group, '-', '+', 100000, consumer)
  -- A server that was flushed has no group, and nobody holds anything; other errors are errors.
  if pending.err and not string.find(tostring(pending.err), 'NOGROUP') then return pending end
  held[place], done[place], freed[place] = {}, {}, 0
  for _, row in ipairs(pending) do held[place][row[1]] = row[4] end
end

-- Out of memory, a server refuses a script whose first write needs memory, and lets one go on that
-- began with another. This one frees more than it writes: a full queue must stay drainable.
call('XACK', KEYS[tonumber(string.sub(ARGV[11], 1, 1))], group, '0-0')

local out, said, touched, room = {}, {}, {}, {}
-- Whether the stream behind this place takes so much more; counts it when it does.
local function has_room(place, size)
  if place == 5 then return false end
  local to = place < 4 and 4 or 5
  local next = room[to]
  if not next then
    next = {entries = call('XLEN', KEYS[to]), bytes = tonumber(call('GET', KEYS[5 + to]) or '0')}
    next.added, room[to] = 0, next
  end
  local entries_max, bytes_max = tonumber(ARGV[2 * to - 2]), tonumber(ARGV[2 * to - 1])
  if next.entries + 1 > entries_max or next.bytes + next.added + size > bytes_max then return false end
  next.entries, next.added = next.entries + 1, next.added + size
  return to
end
-- Moves an entry on. Its client finds it there by its id, to take it back.
local function escalate(place, entry, request, id, bytes, to)
  if not id then call('XADD', KEYS[to], '*', 'request', request, 'answer', bytes) return end
  local new_entry = call('XADD', KEYS[to], '*', 'request', request, 'answer', bytes, 'id', id)
  local seen, here = call('GET', seen_prefix .. id), ' ' .. place .. ' ' .. entry
  if seen and string.sub(seen, -#here) == here then
    local there = string.sub(seen, 1, -#here - 1) .. ' ' .. to .. ' ' .. new_entry
    call('SET', seen_prefix .. id, there, 'KEEPTTL')
  end
end

local i = 12
while i <= #ARGV do
  local place, entry, op = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  local number, bytes, names = tonumber(ARGV[i + 3]), ARGV[i + 4], ARGV[i + 5]
  local sample, truth_key, size = ARGV[i + 6], ARGV[i + 7], tonumber(ARGV[i + 9])
  local at, deliveries = i, held[place][entry]
  local status, request, id = deliveries and 'ok' or 'lost', nil, nil
  i = i + (op == 'dead' and 13 or 10)
  if deliveries and (op ~= 'reply' or sample ~= '') then
    -- The payload and the id beside it, unless somebody deleted the entry under its lease.
    local row = call('XRANGE', KEYS[place], entry, entry)[1]
    if row then
      local fields = {}
      for f = 1, #row[2], 2 do fields[row[2][f]] = row[2][f + 1] end
      request, id = fields.request or '', fields.id
    elseif op ~= 'reply' then
      status = 'lost'
    end
  end
  if status == 'ok' and (op == 'escalate' or op == 'both') then
    local to = has_room(place, size)
    if to then escalate(ARGV[at], entry, request, id, bytes, to) else status = 'full' end
  elseif status == 'ok' and op == 'dead' then
    -- A large one takes the room of several, so that the cap is one of bytes too.
    local letters_max = math.max(1, math.floor(ARGV[5] / math.ceil(math.max(1, size) / 65536)))
    call('XADD', KEYS[12], 'MAXLEN', '~', letters_max, '*', 'reason', ARGV[at + 10], 'message', ARGV[at + 11],
      'deliveries', deliveries, 'source', KEYS[place], 'entry', entry, 'sha1', ARGV[at + 12],
      'told', number > 0 and 1 or 0, 'request', request)
  end
  if status == 'ok' then
    if number > 0 and op ~= 'escalate' then
      call('XADD', KEYS[13 + number], '*', 'reply', bytes)
      touched[13 + number] = true
    end
    if sample ~= '' and request then
      local one_in, key = string.match(sample, '^(%d+) (.*)$')
      call('XADD', KEYS[11], 'MAXLEN', '~', ARGV[4], '*', 'kind', 'prediction', 'key', key or sample,
        'one_in', one_in or '0', 'request', request, 'answer', bytes)
      names = names .. ',shadowed'
    end
    if truth_key ~= '' then
      call('XADD', KEYS[11], 'MAXLEN', '~', ARGV[4], '*', 'kind', 'truth', 'key', truth_key, 'vector', ARGV[at + 8])
    end
    freed[place] = freed[place] + size
    done[place][#done[place] + 1] = entry
    held[place][entry] = nil
  else
    names = status
  end
  said[names] = (said[names] or 0) + 1
  out[#out + 1] = status
end

for place, entries in pairs(done) do
  for first = 1, #entries, 1000 do
    local last = math.min(first + 999, #entries)
    call('XACK', KEYS[place], group, unpack(entries, first, last))
    call('XDEL', KEYS[place], unpack(entries, first, last))
  end
  -- An empty stream holds no bytes: the counter heals itself if it ever went wrong.
  if call('XLEN', KEYS[place]) == 0 then call('DEL', KEYS[5 + place])
  elseif freed[place] > 0 then call('DECRBY', KEYS[5 + place], freed[place]) end
end
for to, next in pairs(room) do
  if next.added > 0 then call('INCRBY', KEYS[5 + to], next.added) end
end
for key in pairs(touched) do call('PEXPIRE', KEYS[key], ARGV[3]) end
-- Most entries of a batch say the same, so that it is read once.
local tally = {}
for names, times in pairs(said) do
  for name, n in string.gmatch(names, '([^,=]+)=?(%d*)') do
    tally[name] = (tally[name] or 0) + times * (tonumber(n) or 1)
  end
end
for name, n in pairs(tally) do call('HINCRBY', KEYS[13], name, n) end
return out
