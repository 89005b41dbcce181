-- How a fallback tier is, for the circuit breaker of whoever escalates to it.
--
-- KEYS[1] the tier's hash (ok, failed, ...; gone when no worker of the tier lives)  KEYS[2] its stream
-- ARGV[1] how long the hash lives after each report, ms
-- Returns: 1 when a worker lives, ok, failed, entries in the stream, age of the oldest one in ms.
local found = redis.call('HMGET', KEYS[1], 'ok', 'failed')
local oldest, age = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1], 0
if oldest then age = time_ms() - tonumber(string.match(oldest[1], '^%d+')) end
-- One that has longer to live than it was given is from before the server's clock went back: who lives
-- reports again within a second.
local left = redis.call('PTTL', KEYS[1])
return {left > 0 and left <= tonumber(ARGV[1]) and 1 or 0, tonumber(found[1] or '0'), tonumber(found[2] or '0'),
  redis.call('XLEN', KEYS[2]), math.max(0, math.floor(age))}
