-- Writes what an evaluation left, if the caller still leads: all of it or nothing.
--
-- KEYS[1] leader   [2] judge (hash)   [3] orders (list)   [4] audit (list)
-- ARGV[1] fence  [2] orders taken up  [3] audit entries kept  [4] how long the judge's keys are kept, s
-- ARGV[5] number of hash fields f, then f times field, value
-- then number of audit entries a, then a entries
-- then number of blocks b, then b times key, value, seconds to live
-- Returns 1, or 0 when another judge leads: nothing was written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 5
local function count()
  at = at + 1
  return tonumber(ARGV[at - 1])
end
for _ = 1, count() do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  at = at + 2
end
redis.call('HSET', KEYS[2], 'fence', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[4])
if tonumber(ARGV[2]) > 0 then redis.call('LTRIM', KEYS[3], ARGV[2], -1) end
for _ = 1, count() do
  redis.call('LPUSH', KEYS[4], ARGV[at])
  at = at + 1
end
redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[3]) - 1)
if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('EXPIRE', KEYS[4], ARGV[4]) end
for _ = 1, count() do
  redis.call('SET', ARGV[at], ARGV[at + 1], 'EX', ARGV[at + 2])
  at = at + 3
end
return 1
