-- Appends requests to the queue: once per id, within the limits, all in one step.
--
-- KEYS[1] requests stream   KEYS[2] byte counter of that stream
-- ARGV[1] entries_max   ARGV[2] bytes_max   ARGV[3] seen window in ms   ARGV[4] prefix of seen keys
-- ARGV[5..] id, payload, id, payload, ...
--
-- Returns for each request, in order: 1 appended, 0 already enqueued before (same id, within the
-- window), -1 queue full. The first full one ends the work: all later ones are -1 too, so that a
-- producer's order holds.
local entries_max, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local entries = redis.call('XLEN', KEYS[1])
local bytes = tonumber(redis.call('GET', KEYS[2]) or '0')
local added_bytes, full, out = 0, false, {}
for i = 5, #ARGV, 2 do
  local id, payload = ARGV[i], ARGV[i + 1]
  if full or entries + 1 > entries_max or bytes + added_bytes + #payload > bytes_max then
    full = true
    -- A repeat of something accepted earlier is not refused: it is already in.
    out[#out + 1] = redis.call('EXISTS', ARGV[4] .. id) == 1 and 0 or -1
  elseif redis.call('SET', ARGV[4] .. id, '1', 'NX', 'PX', ARGV[3]) then
    redis.call('XADD', KEYS[1], '*', 'request', payload)
    entries, added_bytes = entries + 1, added_bytes + #payload
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
end
if added_bytes > 0 then redis.call('INCRBY', KEYS[2], added_bytes) end
return out
