-- Appends requests to the queue: once per id, within the limits, all in one step.
--
-- KEYS[1] requests stream   KEYS[2] byte counter of that stream
-- ARGV[1] entries_max   [2] bytes_max   [3] seen window in ms   [4] prefix of the seen keys
-- ARGV[5] client id     [6..] id, payload, id, payload, ...
--
-- Returns for each request, in order:
--    1  it is in: appended now, or earlier by this client (a repeat whose first reply was lost)
--    0  another client enqueued this id within the window; nothing was done
--   -1  the queue is full. The first full one ends the work: all later new ones are -1 too, so that
--       a producer's order holds.
-- A seen key holds "<client id> <entry id>": who enqueued the request, and where it is; or
-- "<client id> cancelled", and then the id may be used again.
local entries_max, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local client = ARGV[5] .. ' '
local entries = redis.call('XLEN', KEYS[1])
local bytes = tonumber(redis.call('GET', KEYS[2]) or '0')
local added_bytes, full, out = 0, false, {}
for i = 6, #ARGV, 2 do
  local payload, seen_key = ARGV[i + 1], ARGV[4] .. ARGV[i]
  local seen = redis.call('GET', seen_key)
  if seen and string.sub(seen, -10) ~= ' cancelled' then
    out[#out + 1] = string.sub(seen, 1, #client) == client and 1 or 0
  elseif full or entries + 1 > entries_max or bytes + added_bytes + #payload > bytes_max then
    full = true
    out[#out + 1] = -1
  else
    local entry = redis.call('XADD', KEYS[1], '*', 'request', payload)
    redis.call('SET', seen_key, client .. entry, 'PX', ARGV[3])
    entries, added_bytes = entries + 1, added_bytes + #payload
    out[#out + 1] = 1
  end
end
if added_bytes > 0 then redis.call('INCRBY', KEYS[2], added_bytes) end
return out
