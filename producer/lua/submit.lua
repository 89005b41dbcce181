-- Appends requests to the queue: once per id, within the limits, all in one step.
--
-- KEYS[1..3] streams of the levels high, normal, low   KEYS[4..6] their byte counters
-- KEYS[7] stats hash
-- ARGV[1] entries_max   [2] bytes_max   [3] seen window in ms   [4] prefix of the seen keys
-- ARGV[5] client id     [6..] id, level (1, 2 or 3), call, payload, id, level, call, payload, ...
--
-- Returns for each request, in order:
--    1  it is in: appended now, or earlier by this client (a repeat whose first reply was lost; also
--       of a request that was taken back since: that one is not appended again)
--    0  another client enqueued this id within the window; nothing was done
--   -1  the queue is full. The first full one of a level ends the work for that level: all its later
--       new ones are -1 too, so that a producer's order holds.
--
-- The limits are of all three levels together: a normal request is refused at the limit, a low one
-- at half of it, a high one at five quarters. So a flood of one level leaves room for the one above.
-- A seen key holds "<client id> <call> <place> <entry id>": who enqueued the request, in which call,
-- and where it is; or "<client id> <call> cancelled", and then another call may use the id again.
local NAMES, SHARES = {'high', 'normal', 'low'}, {1.25, 1, 0.5}
local client, entries, bytes = ARGV[5] .. ' ', 0, 0
for level = 1, 3 do
  entries = entries + redis.call('XLEN', KEYS[level])
  bytes = bytes + tonumber(redis.call('GET', KEYS[3 + level]) or '0')
end
local added, accepted, refused, out = {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {}
for i = 6, #ARGV, 4 do
  local id, level, call, payload = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local share = SHARES[level]
  local seen = redis.call('GET', ARGV[4] .. id)
  if seen == client .. call .. ' cancelled' then
    out[#out + 1] = 1
  elseif seen and string.sub(seen, -10) ~= ' cancelled' then
    out[#out + 1] = string.sub(seen, 1, #client) == client and 1 or 0
  elseif refused[level] > 0 or entries + 1 > math.ceil(ARGV[1] * share) or bytes + #payload > ARGV[2] * share then
    refused[level] = refused[level] + 1
    out[#out + 1] = -1
  else
    local entry = redis.call('XADD', KEYS[level], '*', 'request', payload, 'id', id)
    redis.call('SET', ARGV[4] .. id, client .. call .. ' ' .. ARGV[i + 1] .. ' ' .. entry, 'PX', ARGV[3])
    entries, bytes = entries + 1, bytes + #payload
    added[level], accepted[level] = added[level] + #payload, accepted[level] + 1
    out[#out + 1] = 1
  end
end
for level = 1, 3 do
  if accepted[level] > 0 then
    redis.call('INCRBY', KEYS[3 + level], added[level])
    redis.call('HINCRBY', KEYS[7], 'accepted:' .. NAMES[level], accepted[level])
  end
  if refused[level] > 0 then redis.call('HINCRBY', KEYS[7], 'refused:' .. NAMES[level], refused[level]) end
end
return out
