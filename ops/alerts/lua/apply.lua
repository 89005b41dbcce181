-- Writes the alerts that an evaluation changed and the messages that tell it: all of it or nothing.
--
-- KEYS[1] leader (string: fence of who may evaluate)   [2] states (hash: alert id -> JSON)
-- KEYS[3] outbox (stream: `message`)
-- ARGV[1] fence  [2] how long the states are kept, s  [3] most messages that wait
-- ARGV[4] number of states n, then n times id, JSON ("" forgets it)
-- then number of messages m, then m messages
-- Returns 1, or 0 when another one leads: nothing was written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 4
local function count()
  at = at + 1
  return tonumber(ARGV[at - 1])
end
for _ = 1, count() do
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[at])
  else
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
  at = at + 2
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
local told = count()
for _ = 1, told do
  redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[3], '*', 'message', ARGV[at])
  at = at + 1
end
if told > 0 then redis.call('EXPIRE', KEYS[3], ARGV[2]) end
return 1
