-- Counts entries that were delivered before as begun, just before their worker looks into them: if it
-- dies over them, whoever takes them over knows. The count is given, so that a repeat counts once.
--
-- KEYS    streams
-- ARGV[1] group  [2] consumer  [3..] per entry: number of its stream, id, deliveries with this one
-- Returns per entry 1, or 0 when the lease is another worker's now: that one is not to be begun.
local out = {}
for i = 3, #ARGV, 3 do
  local stream, entry = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local held = redis.pcall('XPENDING', stream, ARGV[1], entry, entry, 1, ARGV[2])
  -- A server that was flushed has no group, and nobody holds anything; other errors are errors.
  if held.err and not string.find(tostring(held.err), 'NOGROUP') then return held end
  if held[1] then
    local count = math.max(held[1][4], tonumber(ARGV[i + 2]))
    redis.call('XCLAIM', stream, ARGV[1], ARGV[2], 0, entry, 'RETRYCOUNT', count, 'JUSTID')
  end
  out[#out + 1] = held[1] and 1 or 0
end
return out
