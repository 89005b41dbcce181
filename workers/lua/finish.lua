-- Ends leased entries: reply, escalate, sample, dead-letter, count, ack and delete, in one step.
--
-- KEYS[1..5] streams by place: requests:high, requests, requests:low, fallback, fallback:secondary
-- KEYS[6..10] their byte counters   KEYS[11] shadow stream   KEYS[12] dead letter stream
-- KEYS[13] stats hash               KEYS[14..] reply streams
-- ARGV[1] group  [2] consumer  [3] reply_ttl_ms  [4] shadow_entries_max  [5] dead_entries_max
-- ARGV[6], [7] most entries and bytes of the fallback stream   [8], [9] of the secondary one
-- ARGV[10] prefix of the seen keys   [11] the places that occur below, one digit each
-- ARGV[12], [13] most entries and bytes of a reply stream  [14] reply numbers to look at for that: "1 7"
-- ARGV[15..] per entry ten values:
--   place, id, op, reply number (0: nobody to answer), reply bytes, counters ("a,b=17": 1 and 17),
--   sample ("k key": taken at the rate 1/k), truth key, truth bytes, payload size
--   op: "reply"     ends here with these bytes
--       "escalate"  goes to the next stream, bytes attached as the best answer so far
--       "both"      escalates, and the bytes go to the client as a provisional answer
--       "dead"      goes to the dead letter stream; the bytes, if any, tell the client; three more
--                   values follow: reason, message, sha1 of the payload
-- Returns per entry: "ok", "lost" (the lease is another worker's now: nothing was done for it) or
-- "full" (no room in the next stream, or none is next: nothing was done; finish it in another way).
-- Behind them, the server's time as TIME gives it: when the answers were there.
--
-- Producers can write to some of these keys, and a script that fails half-way undoes nothing. So
-- whatever is written to a stream or a counter stands on its own: what a key takes no more is counted
-- as "untold:<what>", and the entry ends all the same. What the server refuses to us (read-only, no
-- rights) is no such end: the step stops there, what it had ended stays so, and the error is returned.
--
-- The fence: only entries that this consumer still holds are touched.
local call, try, group, consumer, seen_prefix = redis.call, redis.pcall, ARGV[1], ARGV[2], ARGV[10]
local held, done, freed, tally, refused = {}, {}, {}, {}, nil
local function count(name, n) tally[name] = (tally[name] or 0) + n end
-- Whether an answer is an error that is none of the key's. Those are said with ERR or WRONGTYPE, as is,
-- in a script, the want of rights.
local function is_refusal(answer)
  if type(answer) ~= 'table' or not answer.err then return false end
  local code = string.match(answer.err, '^%-?(%u+)')
  return code ~= 'ERR' and code ~= 'WRONGTYPE' or string.find(answer.err, 'ACL failure', 1, true) or
    string.find(answer.err, 'user executing', 1, true)
end
-- Runs one command; what it answered, or nil when the key does not take it, counted under this name.
local function attempt(what, ...)
  local answer = try(...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if is_refusal(answer) then refused = answer else count('untold:' .. what, 1) end
end
-- The value of a string; nil when there is none, or something else is there.
local function value(key)
  local found = try('GET', key)
  return type(found) == 'string' and found or nil
end
for digit in string.gmatch(ARGV[11], '%d') do
  local place, problem = tonumber(digit), nil
  held[place], problem = held_by(consumer, KEYS[place], group)
  if problem then return problem end
  done[place], freed[place] = {}, 0
end

-- Out of memory, a server refuses a script whose first write needs memory, and lets one go on that
-- began with another. This one frees more than it writes: a full queue must stay drainable.
local first = try('XACK', KEYS[tonumber(string.sub(ARGV[11], 1, 1))], group, '0-0')
if is_refusal(first) then return first end

local out, said, touched, room = {}, {}, {}, {}
-- The stream behind this place, if it takes so much more.
local function has_room(place, size)
  if place == 5 then return nil end
  local to = place < 4 and 4 or 5
  if not room[to] then
    local entries = try('XLEN', KEYS[to])
    room[to] = {entries = tonumber(entries) or 0, bytes = tonumber(value(KEYS[5 + to])) or 0, added = 0}
  end
  local next, entries_max, bytes_max = room[to], tonumber(ARGV[2 * to - 2]), tonumber(ARGV[2 * to - 1])
  if next.entries + 1 > entries_max or next.bytes + next.added + size > bytes_max then return nil end
  return to
end
-- Moves an entry on; false when the next stream takes nothing. Its client finds it there by its id,
-- to take it back.
local function escalate(place, entry, request, id, bytes, to, size)
  local fields = {'request', request, 'answer', bytes, id and 'id', id}
  local new_entry = attempt('escalation', 'XADD', KEYS[to], '*', unpack(fields))
  if not new_entry then return false end
  room[to].entries, room[to].added = room[to].entries + 1, room[to].added + size
  local seen, here = id and value(seen_prefix .. id), ' ' .. place .. ' ' .. entry
  if seen and string.sub(seen, -#here) == here then
    local there = string.sub(seen, 1, -#here - 1) .. ' ' .. to .. ' ' .. new_entry
    try('SET', seen_prefix .. id, there, 'KEEPTTL')
  end
  return true
end

local i = 15
while i <= #ARGV and not refused do
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
      local fields = pairs_of(row[2])
      request, id = fields.request or '', fields.id
    elseif op ~= 'reply' then
      status = 'lost'
    end
  end
  if status == 'ok' and (op == 'escalate' or op == 'both') then
    local to = has_room(place, size)
    if not (to and escalate(ARGV[at], entry, request, id, bytes, to, size)) then status = 'full' end
  elseif status == 'ok' and op == 'dead' then
    -- A large one takes the room of several, so that the cap is one of bytes too.
    local letters_max = math.max(1, math.floor(ARGV[5] / math.ceil(math.max(1, size) / 65536)))
    -- One that names nobody can be anybody's garbage: it puts no other letter out, and half of the room
    -- is for those that name somebody.
    if number == 0 and (tonumber(try('XLEN', KEYS[12])) or 0) >= letters_max / 2 then
      count('untold:letter', 1)
    else
      attempt('letter', 'XADD', KEYS[12], 'MAXLEN', '~', letters_max, '*', 'reason', ARGV[at + 10],
        'message', ARGV[at + 11], 'deliveries', deliveries, 'source', KEYS[place], 'entry', entry,
        'sha1', ARGV[at + 12], 'told', number > 0 and 1 or 0, 'request', request)
    end
  end
  if status == 'ok' and not refused and number > 0 and op ~= 'escalate' then
    attempt('reply', 'XADD', KEYS[13 + number], '*', 'reply', bytes)
    touched[13 + number] = true
  end
  if refused then break end -- this one has no end, and can have one when that has passed
  if status == 'ok' then
    if sample ~= '' and request then
      local one_in, key = string.match(sample, '^(%d+) (.*)$')
      local taken = attempt('sample', 'XADD', KEYS[11], 'MAXLEN', '~', ARGV[4], '*', 'kind', 'prediction',
        'key', key or sample, 'one_in', one_in or '0', 'request', request, 'answer', bytes)
      if taken then names = names .. ',shadowed' end
    end
    if truth_key ~= '' then
      attempt('truth', 'XADD', KEYS[11], 'MAXLEN', '~', ARGV[4], '*', 'kind', 'truth', 'key', truth_key,
        'vector', ARGV[at + 8])
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

local stopped = refused
for place, entries in pairs(done) do
  with_ids(entries, 'XACK', KEYS[place], group)
  with_ids(entries, 'XDEL', KEYS[place])
  -- The counter heals itself if it ever went wrong: an empty stream holds no bytes, and no entry more
  -- than BATCH_BYTES_MAX (producer/messages.py). A level of which nothing ended here may be no stream any more.
  local waiting = try('XLEN', KEYS[place])
  if waiting == 0 then call('DEL', KEYS[5 + place])
  elseif freed[place] > 0 then
    local left = attempt('bytes', 'DECRBY', KEYS[5 + place], freed[place])
    if not left or left < 0 or left > waiting * 4194304 then call('SET', KEYS[5 + place], 0) end
  end
end
for to, next in pairs(room) do
  if next.added > 0 and not attempt('bytes', 'INCRBY', KEYS[5 + to], next.added) then
    call('SET', KEYS[5 + to], next.added)
  end
end
for key in pairs(touched) do try('PEXPIRE', KEYS[key], ARGV[3]) end
-- Whoever does not read loses the oldest answers, a tenth of them at once: looked at now and then only.
for number in string.gmatch(ARGV[14], '%d+') do
  local key = KEYS[13 + number]
  -- All of the stream is measured: a sample of it that meets one large answer takes all for as large.
  local bytes = tonumber(try('MEMORY', 'USAGE', key, 'SAMPLES', 0)) or 0
  local entries = tonumber(try('XLEN', key)) or 0
  local over = math.max(entries / tonumber(ARGV[12]), bytes / tonumber(ARGV[13]))
  if over > 1 then
    count('untold:dropped', attempt('reply', 'XTRIM', key, 'MAXLEN', math.floor(0.9 * entries / over)) or 0)
  end
end
-- Most entries of a batch say the same, so that it is read once.
for names, times in pairs(said) do
  for name, n in string.gmatch(names, '([^,=]+)=?(%d*)') do count(name, times * (tonumber(n) or 1)) end
end
for name, n in pairs(tally) do try('HINCRBY', KEYS[13], name, n) end
if stopped then return stopped end
local clock = call('TIME')
out[#out + 1] = clock[1]
out[#out + 1] = clock[2]
return out
