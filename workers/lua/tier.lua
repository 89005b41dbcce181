-- How a fallback tier is, for the circuit breaker of whoever escalates to it.
--
-- KEYS[1] the tier's hash (ok, failed, ...; gone when no worker of the tier lives)  KEYS[2] its stream
-- Returns: 1 when a worker lives, ok, failed, entries in the stream, age of the oldest one in ms.
local found = redis.call('HMGET', KEYS[1], 'ok', 'failed')
local oldest, age = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1], 0
if oldest then
  local time = redis.call('TIME')
  age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(oldest[1], '^%d+'))
end
return {redis.call('EXISTS', KEYS[1]), tonumber(found[1] or '0'), tonumber(found[2] or '0'),
  redis.call('XLEN', KEYS[2]), math.max(0, math.floor(age))}
