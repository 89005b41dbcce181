-- Appends requests to the queue: once per id, within the limits, all in one step.
--
-- KEYS[1..3] streams of the levels high, normal, low   KEYS[4..6] their byte counters
-- KEYS[7] stats hash
-- ARGV[1] entries_max   [2] bytes_max   [3] seen window in ms   [4] prefix of the seen keys
-- ARGV[5] client: a hash of its id   [6..] id, level (1, 2 or 3), call, payload, id, level, call, payload, ...
--
-- Returns for each request, in order:
--    1  it is in: appended now, or earlier by this client (a repeat whose first reply was lost; also
--       of a request that was taken back since: that one is not appended again)
--    0  another client enqueued this id within the window; nothing was done
--   -1  the queue is full. The first full one of a level ends the work for that level: all its later
--       new ones are -1 too, so that a producer's order holds.
--   -2  the level's stream takes nothing any more (its last id is used up, or it is no stream); nothing
--       was done, nor for the level's later new ones.
--
-- The limits are of all three levels together: a normal request is refused at the limit, a low one
-- at half of it, a high one at five quarters. So a flood of one level leaves room for the one above.
-- A seen key holds "<client> <call> <place> <entry id>": who enqueued the request, in which call, and
-- where it is; or "<client> <call> cancelled", and then another call may use the id again.
-- Other producers may have written nonsense to any of these keys: nothing of it ends a call half-way. So
-- what is known of the ids is read before anything is written: where it cannot be, nothing is done.
local try, SHARES, NAMES = redis.pcall, {1.25, 1, 0.5}, {'high', 'normal', 'low'}
local client, entries, bytes = ARGV[5] .. ' ', 0, 0
for level = 1, 3 do
  -- Every append counts its bytes, and only an empty stream has its counter deleted.
  local held = try('GET', KEYS[3 + level])
  if held then
    local waiting = tonumber(try('XLEN', KEYS[level])) or 0
    entries = entries + waiting
    -- An empty stream holds no bytes, and no entry more than BATCH_BYTES_MAX (producer/messages.py),
    -- whatever its counter says: any producer can write to it, and none can close the queue so.
    bytes = bytes + math.min(math.max(0, tonumber(held) or 0), waiting * 4194304)
  end
end
local added, accepted, refused, closed, out, noted = {}, {}, {}, {}, {}, {}
for i = 6, #ARGV, 4 do
  local seen = try('GET', ARGV[4] .. ARGV[i])
  -- Of a key that moves to another node just now, nobody can say here whether it is known.
  if type(seen) == 'table' and not string.find(tostring(seen.err), 'WRONGTYPE') then return seen end
  noted[ARGV[i]] = type(seen) == 'string' and seen
end
-- Appends one; true, or the server's error.
local function append(level, id, payload, mark)
  local entry = try('XADD', KEYS[level], '*', 'request', payload, 'id', id)
  if type(entry) == 'table' then return entry end
  noted[id] = mark .. level .. ' ' .. entry
  try('SET', ARGV[4] .. id, noted[id], 'PX', ARGV[3])
  entries, bytes = entries + 1, bytes + #payload
  added[level], accepted[level] = (added[level] or 0) + #payload, (accepted[level] or 0) + 1
  return true
end
for i = 6, #ARGV, 4 do
  local id, level, payload, status = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 3], 1
  local mark = client .. ARGV[i + 2] .. ' '
  local seen = noted[id]
  if seen and string.sub(seen, -10) == ' cancelled' and seen ~= mark .. 'cancelled' then seen = false end
  if seen then
    -- A client that repeats itself has not heard us: its id is remembered until it stops.
    if string.sub(seen, 1, #client) == client then try('SET', ARGV[4] .. id, seen, 'PX', ARGV[3]) else status = 0 end
  elseif closed[level] then
    status = closed[level]
  elseif entries >= ARGV[1] * SHARES[level] or bytes + #payload > ARGV[2] * SHARES[level] then
    status = -1
  else
    local failed = append(level, id, payload, mark)
    if failed ~= true then
      local text = tostring(failed.err)
      local unusable = string.find(text, 'exhausted') or string.find(text, 'WRONGTYPE')
      -- Out of memory, read-only, no rights: said of the server and not of this stream, and at the
      -- first write of a script only.
      if not (unusable or next(accepted)) then return failed end
      status = -2
    end
  end
  if status < 0 then closed[level], refused[level] = status, (refused[level] or 0) + 1 end
  out[#out + 1] = status
end
for level = 1, 3 do
  if accepted[level] then
    try('INCRBY', KEYS[3 + level], added[level])
    try('HINCRBY', KEYS[7], 'accepted:' .. NAMES[level], accepted[level])
  end
  if refused[level] then try('HINCRBY', KEYS[7], 'refused:' .. NAMES[level], refused[level]) end
end
return out
