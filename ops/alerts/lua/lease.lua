-- Hands out the first message of one line whose time has come. One attempt at a time a line: until it
-- is settled, or its lease ran out.
--
-- KEYS[1] due (zset: line -> time)   [2] pace (hash: sink -> time before which it is left alone)
-- ARGV[1] key prefix  [2] now_ms  [3] lease_ms  [4] most lines looked at
-- ARGV[5] how long what is tried is kept, s   then pairs: sink, least time between its messages, ms
-- Keys made of the prefix: line:<line> (list), tries:<line> (hash)
-- Returns line, message id, attempt; or nothing.
local now = tonumber(ARGV[2])
local paces = {}
for i = 6, #ARGV, 2 do paces[ARGV[i]] = tonumber(ARGV[i + 1]) end
for _, line in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[4])) do
  local sink = string.match(line, '^([^|]+)')
  local id = redis.call('LINDEX', ARGV[1] .. 'line:' .. line, 0)
  local free_at = tonumber(redis.call('HGET', KEYS[2], sink) or '0')
  if not id or not paces[sink] then
    -- Expired, or for a sink that is not configured any more.
    redis.call('ZREM', KEYS[1], line)
    redis.call('DEL', ARGV[1] .. 'line:' .. line, ARGV[1] .. 'tries:' .. line)
  elseif free_at > now then
    redis.call('ZADD', KEYS[1], free_at, line)
  else
    local tries = ARGV[1] .. 'tries:' .. line
    local attempt = redis.call('HINCRBY', tries, 'attempt', 1)
    redis.call('EXPIRE', tries, ARGV[5])
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), line)
    if paces[sink] > 0 then
      redis.call('HSET', KEYS[2], sink, now + paces[sink])
      redis.call('EXPIRE', KEYS[2], ARGV[5])
    end
    return {line, id, tostring(attempt)}
  end
end
return false
