-- Tells the secondary sinks what no primary one has accepted in time.
--
-- KEYS[1] waiting (zset: alert id -> when it is too late)   [2] due (zset: line -> time)
-- ARGV[1] key prefix  [2] now_ms  [3] how long a message is kept, s
-- Keys made of the prefix: line:<sink>|<alert> (list), incident:<alert> (hash)
-- Returns the alerts that they are told of now.
local late = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
for _, alert in ipairs(late) do
  local incident = ARGV[1] .. 'incident:' .. alert
  local awaited = redis.call('HMGET', incident, 'message', 'second')
  redis.call('ZREM', KEYS[1], alert)
  for sink in string.gmatch(awaited[2] or '', '[^,]+') do
    local line = sink .. '|' .. alert
    redis.call('RPUSH', ARGV[1] .. 'line:' .. line, awaited[1])
    redis.call('EXPIRE', ARGV[1] .. 'line:' .. line, ARGV[3])
    redis.call('ZADD', KEYS[2], 'NX', ARGV[2], line)
    redis.call('HSET', incident, 'told:' .. sink, awaited[1])
    redis.call('EXPIRE', incident, ARGV[3])
  end
end
return late
