-- Takes one message from the outbox and gives it to its sinks: once, whoever repeats it.
--
-- KEYS[1] outbox   [2] due (zset: line -> time)   [3] waiting (zset: alert id -> when it is too late)
-- ARGV[1] key prefix  [2] outbox entry id  [3] message id  [4] body  [5] alert id  [6] kind
-- ARGV[7] now_ms  [8] how long a message is kept, s  [9] when no acceptance is too late, ms; 0: never
-- ARGV[10] the secondary sinks that are told then, with commas   then the primary sinks
-- Keys made of the prefix: message:<id> (hash), line:<sink>|<alert> (list), incident:<alert> (hash)
-- Returns 1, or 0 when it was taken before.
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
-- It is taken: a line that is no list, or a zset that is none, must not keep it from the other sinks.
local function put(...)
  if type(redis.pcall(...)) ~= 'table' then return end
  local command, key = ...
  redis.call('DEL', key)
  redis.call(...)
end
local prefix, id, alert, kind, keep = ARGV[1], ARGV[3], ARGV[5], ARGV[6], ARGV[8]
local sinks, chosen = {}, {}
for i = 11, #ARGV do
  sinks[#sinks + 1] = ARGV[i]
  chosen[ARGV[i]] = true
end
local incident = prefix .. 'incident:' .. alert
if kind == 'resolve' then
  -- Secondary sinks hear of the end of what they were told, and of nothing else any more.
  for _, field in ipairs(redis.call('HKEYS', incident)) do
    local sink = string.match(field, '^told:(.+)$')
    if sink and not chosen[sink] then sinks[#sinks + 1] = sink end
  end
  redis.call('DEL', incident)
  redis.call('ZREM', KEYS[3], alert)
end
if #sinks == 0 then return 1 end
redis.call('HSET', prefix .. 'message:' .. id, 'body', ARGV[4], 'taken_ms', ARGV[7])
redis.call('EXPIRE', prefix .. 'message:' .. id, keep)
for _, sink in ipairs(sinks) do
  local line = sink .. '|' .. alert
  put('RPUSH', prefix .. 'line:' .. line, id)
  redis.call('EXPIRE', prefix .. 'line:' .. line, keep)
  put('ZADD', KEYS[2], 'NX', ARGV[7], line)
end
if ARGV[9] ~= '0' then
  redis.call('HSET', incident, 'message', id, 'second', ARGV[10])
  redis.call('EXPIRE', incident, keep)
  redis.call('ZADD', KEYS[3], ARGV[9], alert)
end
return 1
