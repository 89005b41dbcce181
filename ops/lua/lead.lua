-- Takes or renews the judge's leadership; one judge leads at a time.
--
-- KEYS[1] leader (string: the leader's fence, expires)   KEYS[2] fence (string: the last one given)
-- ARGV[1] fence that the caller holds, or ""   [2] lease_ms   [3] how long the fence is remembered, ms
-- Returns the caller's fence when it leads, "" when another judge does.
local leader = redis.call('GET', KEYS[1])
if leader and leader == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return leader
end
if leader then
  -- A lease that is longer than it was given is from before the server's clock went back: it begins anew.
  if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return ''
end
-- Above the last one and above the clock: it grows even when the server has lost its memory.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local fence = string.format('%.0f', math.max(last + 1, now_ms))
redis.call('SET', KEYS[2], fence, 'PX', ARGV[3])
redis.call('SET', KEYS[1], fence, 'PX', ARGV[2])
return fence
