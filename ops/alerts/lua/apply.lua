-- Writes the alerts that an evaluation changed and the messages that tell it: all of it or nothing.
--
-- KEYS[1] leader (string: fence of who may evaluate)   [2] states (hash: alert id -> JSON)
-- KEYS[3] outbox (stream: `message`)
-- ARGV[1] fence  [2] how long the states are kept, s  [3] most messages that wait
-- ARGV[4] number of states n, then n times id, JSON ("" forgets it)
-- then number of messages m, then m messages
-- Returns 1, or 0 when another one leads: nothing was written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
-- The messages first: what cannot be told must not be written down as told.
local states = tonumber(ARGV[4])
local first = 6 + 2 * states
for i = first, first + tonumber(ARGV[first - 1]) - 1 do
  redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[3], '*', 'message', ARGV[i])
  redis.call('EXPIRE', KEYS[3], ARGV[2])
end
for at = 5, 3 + 2 * states, 2 do
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[at])
  else
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
