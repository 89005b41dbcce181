-- Keeps of each group and hour the exemplars with the lowest ranks. May be repeated.
--
-- KEYS[1] hash: bytes by epoch hour
-- ARGV[1] prefix of the hours' keys  [2] kept a group  [3] most bytes of all hours  [4] ttl_s
-- ARGV[5..] per exemplar: epoch hour, group, id, rank, record
-- Below the prefix: `<hour>` hash, `<group>|<id>` -> record; `<hour>:<group>` zset, id by rank.
-- Returns per exemplar the highest rank of its group, or '' while that is not full.
local prefix, kept, most, ttl_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now_s = tonumber(redis.call('TIME')[1])

local function highest(order)
  if redis.call('ZCARD', order) < kept then return nil, nil end
  local last = redis.call('ZRANGE', order, -1, -1, 'WITHSCORES')
  return last[1], tonumber(last[2])
end
local function drop(hour)
  local records = prefix .. hour
  for _, field in ipairs(redis.call('HKEYS', records)) do
    redis.call('DEL', records .. ':' .. string.match(field, '^(.*)|'))
  end
  redis.call('DEL', records)
  redis.call('HDEL', KEYS[1], hour)
end
local function put(hour, group, id, rank, record)
  local records, order = prefix .. hour, prefix .. hour .. ':' .. group
  local last, bound = highest(order)
  if tonumber(hour) * 3600 + ttl_s <= now_s or redis.call('ZSCORE', order, id) then return end
  if last then
    if tonumber(rank) >= bound then return end
    local gone = group .. '|' .. last
    redis.call('HINCRBY', KEYS[1], hour, -redis.call('HSTRLEN', records, gone))
    redis.call('HDEL', records, gone)
    redis.call('ZREM', order, last)
  end
  redis.call('ZADD', order, rank, id)
  redis.call('HSET', records, group .. '|' .. id, record)
  redis.call('HINCRBY', KEYS[1], hour, #record)
  for _, key in ipairs({records, order}) do redis.call('EXPIREAT', key, hour * 3600 + ttl_s) end
end

local out = {}
for i = 5, #ARGV, 5 do
  put(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  local _, bound = highest(prefix .. ARGV[i] .. ':' .. ARGV[i + 1])
  out[#out + 1] = bound and string.format('%.0f', bound) or ''
end

local hours, total = {}, 0
local sizes = redis.call('HGETALL', KEYS[1])
for i = 1, #sizes, 2 do
  if tonumber(sizes[i]) * 3600 + ttl_s <= now_s then
    redis.call('HDEL', KEYS[1], sizes[i])
  else
    hours[#hours + 1] = {tonumber(sizes[i]), tonumber(sizes[i + 1])}
    total = total + tonumber(sizes[i + 1])
  end
end
table.sort(hours, function(a, b) return a[1] < b[1] end)
for i = 1, #hours - 1 do
  if total <= most then break end
  drop(string.format('%d', hours[i][1]))
  total = total - hours[i][2]
end
redis.call('EXPIRE', KEYS[1], ttl_s)
return out
