-- Ends leased shadow entries: joins a prediction with its truth, adds the sums, acks and deletes, in
-- one step. Whatever is redelivered, by whomever, an entry has its effect once.
--
-- KEYS[1] shadow stream   KEYS[2] stream of reported truths   KEYS[3] stats hash
-- KEYS[4] minutes (zset: epoch minute)
-- KEYS[5] waiting predictions   KEYS[6] waiting truths (zsets: hash of the key -> expiry, ms)
-- ARGV[1] group  [2] consumer  [3] prefix of half keys  [4] prefix of minute keys
-- ARGV[5] half_ttl_ms  [6] halves_max  [7] truth_ttl_ms  [8] truths_max
-- ARGV[9] minute_ttl_s  [10] age_min_max
-- ARGV[11..] per entry:
--   number of the stream, id, op, hash of the key, kind, head, data, partner, minute, number of pairs n, then n times
--   field, amount
--   op: "store"  wait for the other half; the pairs count this half
--       "score"  the other half is the one of entry `partner`; the pairs are the scores, and the head says
--                for how many milliseconds it is remembered that both met
--       "drop"   of no use; counted by `kind`
--   minute: of the prediction; 0 for a truth that waits, whose time does not matter
-- Returns per entry: "ok", "lost" (the lease is another worker's now: nothing was done for it) or
-- "again" (the other half came or went meanwhile: nothing was done; look again and decide anew).
-- As in finish.lua, what the server refuses is counted, and the entry ends all the same.
local group, consumer, prefix = ARGV[1], ARGV[2], ARGV[3]
local minute_ttl_s = tonumber(ARGV[9])
local now_ms = time_ms()
local now_min = math.floor(now_ms / 60000)
local held, done, problem = {}, {{}, {}}, nil
for number = 1, 2 do
  held[number], problem = held_by(consumer, KEYS[number], group)
  if problem then return problem end
end

redis.pcall('XACK', KEYS[1], group, '0-0') -- lets it run out of memory: see finish.lua

local out, tally, sums = {}, {}, {}
local function count(name) tally[name] = (tally[name] or 0) + 1 end
local function attempt(...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  count('untold:sums')
end
local function add(minute, first, last)
  for i = first, last, 2 do
    sums[minute] = sums[minute] or {}
    sums[minute][ARGV[i]] = (sums[minute][ARGV[i]] or 0) + tonumber(ARGV[i + 1])
  end
end
-- The room of a kind: its zset, how long a half waits in it, and how many may.
local function room(kind)
  if kind == 'truth' then return KEYS[6], tonumber(ARGV[7]), tonumber(ARGV[8]) end
  return KEYS[5], tonumber(ARGV[5]), tonumber(ARGV[6])
end
local function store(hash, kind, id, head, data)
  local waiting, ttl_ms, most = room(kind)
  local expired = attempt('ZREMRANGEBYSCORE', waiting, '-inf', now_ms) or 0
  if kind == 'prediction' and expired > 0 then tally['shadow:expired'] = (tally['shadow:expired'] or 0) + expired end
  if (attempt('ZCARD', waiting) or 0) >= most then
    redis.call('DEL', prefix .. redis.call('ZPOPMIN', waiting)[1])
    if kind == 'prediction' then count('shadow:evicted') end
  end
  -- Without a place in the order it would not be counted in the room that it takes.
  if not attempt('ZADD', waiting, now_ms + ttl_ms, hash) then return end
  redis.call('PEXPIRE', waiting, 2 * ttl_ms) -- those that expired last are still counted
  redis.call('HSET', prefix .. hash, 'kind', kind, 'entry', id, 'head', head, 'data', data)
  redis.call('PEXPIRE', prefix .. hash, ttl_ms)
end
local function scored(hash, kind, ttl_ms)
  redis.call('DEL', prefix .. hash)
  redis.call('HSET', prefix .. hash, 'kind', 'scored')
  redis.call('PEXPIRE', prefix .. hash, ttl_ms)
  attempt('ZREM', room(kind), hash)
end

local i = 11
while i <= #ARGV do
  local number, id = tonumber(ARGV[i]), ARGV[i + 1]
  i = i + 1
  local op, hash, kind, partner = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 6]
  local first = i + 9
  local last = first + 2 * tonumber(ARGV[i + 8]) - 1
  local status, there = 'ok', redis.pcall('HMGET', prefix .. hash, 'kind', 'entry')
  if there.err then redis.call('DEL', prefix .. hash) end -- whatever has its name is no half of ours
  -- Ids never go back, though the clock may: what is from the future counts in the present minute.
  local minute = math.min(tonumber(ARGV[i + 7]), now_min)
  if not held[number][id] then
    status = 'lost'
    count('lost')
  elseif op == 'drop' then
    count('shadow:' .. kind)
  elseif minute > 0 and minute < now_min - tonumber(ARGV[10]) then
    count('shadow:stale') -- it would spoil a window
  elseif there[1] == kind or there[1] == 'scored' then
    count('shadow:duplicate')
  elseif op == 'store' and not there[1] then
    store(hash, kind, id, ARGV[i + 4], ARGV[i + 5])
    add(minute, first, last)
    count('shadow:waiting')
  elseif op == 'score' and there[2] == partner then
    scored(hash, there[1], ARGV[i + 4])
    add(minute, first, last)
    count('shadow:scored')
  else
    status = 'again'
  end
  if status == 'ok' then
    held[number][id] = nil
    table.insert(done[number], id)
  end
  out[#out + 1] = status
  i = last + 1
end

for number, ended in ipairs(done) do
  with_ids(ended, 'XACK', KEYS[number], group)
  with_ids(ended, 'XDEL', KEYS[number])
end
for minute, fields in pairs(sums) do
  local key = ARGV[4] .. minute
  for field, amount in pairs(fields) do attempt('HINCRBY', key, field, amount) end
  -- By the minute itself, not by the last change: data that comes after that is gone at once.
  redis.call('EXPIREAT', key, minute * 60 + minute_ttl_s)
  attempt('ZADD', KEYS[4], minute, minute)
  attempt('ZREMRANGEBYSCORE', KEYS[4], '-inf', now_min - math.floor(minute_ttl_s / 60))
  redis.call('EXPIRE', KEYS[4], minute_ttl_s)
end
for name, n in pairs(tally) do redis.pcall('HINCRBY', KEYS[3], name, n) end
return out
