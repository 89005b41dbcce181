-- Publishes the sampling rates, if nobody did since they were read.
--
-- KEYS[1] hash of the rates
-- ARGV[1] the `minute` that was read, '' for none   ARGV[2] seconds until it expires
-- ARGV[3..] field, value in turn: all of it
-- Returns 1, or 0 when another worker was first: nothing was done.
if (redis.call('HGET', KEYS[1], 'minute') or '') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
