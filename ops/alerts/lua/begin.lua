-- Begins an attempt, unless another one took over or its message is gone.
--
-- KEYS[1] due   [2] line (list)   [3] tries (hash)   [4] message (hash)
-- ARGV[1] line  [2] message id  [3] attempt  [4] time at which the lease runs out, ms
-- Returns {body, taken_ms}, or nothing.
if redis.call('LINDEX', KEYS[2], 0) ~= ARGV[2] then return false end
if redis.call('HGET', KEYS[3], 'attempt') ~= ARGV[3] then return false end
local found = redis.call('HMGET', KEYS[4], 'body', 'taken_ms')
if not found[1] then return false end
redis.call('ZADD', KEYS[1], 'XX', ARGV[4], ARGV[1])
return found
