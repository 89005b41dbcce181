-- Stores a silence, and drops those that have ended.
--
-- KEYS[1] silences (hash: id -> JSON with until_ms)
-- ARGV[1] id  [2] JSON  [3] now_ms  [4] most silences  [5] how long the hash is kept, ms
-- Returns 1, or 0 when there are too many.
local all = redis.call('HGETALL', KEYS[1])
local left = 0
for i = 1, #all, 2 do
  if cjson.decode(all[i + 1]).until_ms <= tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    left = left + 1
  end
end
if left >= tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
