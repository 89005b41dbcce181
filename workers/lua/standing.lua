-- Says where the streams of requests stand, so that a client can tell what is gone (producer/session/losses.py).
--
-- KEYS[1..5] streams by place   KEYS[6] what is said: a hash with a field for each place, "<first id> <last id>"
-- or "" of an empty one, and `turn`, one more each time
-- ARGV[1] how long it holds, ms   [2] how often it is said at most, ms
local left = redis.call('PTTL', KEYS[6])
-- More than all is left when the server's clock was put back: then it is due.
if left > ARGV[1] - ARGV[2] and left <= tonumber(ARGV[1]) then return 0 end
local said = {}
for place = 1, 5 do
  local first, ids = redis.call('XRANGE', KEYS[place], '-', '+', 'COUNT', 1)[1], ''
  if first then ids = first[1] .. ' ' .. redis.call('XREVRANGE', KEYS[place], '+', '-', 'COUNT', 1)[1][1] end
  said[#said + 1], said[#said + 2] = place, ids
end
redis.call('HSET', KEYS[6], unpack(said))
redis.call('HINCRBY', KEYS[6], 'turn', 1)
redis.call('PEXPIRE', KEYS[6], ARGV[1])
return 1
