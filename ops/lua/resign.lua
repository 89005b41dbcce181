-- Gives the leadership up, if the caller still has it.
--
-- KEYS[1] leader   ARGV[1] fence that the caller holds
-- Returns 1 when it was given up, 0 when it was another's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
