-- Writes what became of an attempt.
--
-- KEYS[1] due   [2] line (list)   [3] tries (hash)   [4] waiting   [5] pace   [6] sent   [7] dead
-- KEYS[8] incident (hash)
-- ARGV[1] line  [2] message id  [3] attempt  [4] outcome: accepted, again or dead  [5] now_ms
-- ARGV[6] next attempt, ms  [7] sink  [8] before when the sink is left alone, ms; 0: no wish
-- ARGV[9] 1 when the sink is primary  [10] alert id  [11] detail  [12] kept, s  [13] entries kept
-- ARGV[14] rule  [15] kind
-- Returns 1, or 0 when another attempt took over. An acceptance counts all the same.
if redis.call('LINDEX', KEYS[2], 0) ~= ARGV[2] then return 0 end
if ARGV[4] ~= 'accepted' and redis.call('HGET', KEYS[3], 'attempt') ~= ARGV[3] then return 0 end
if ARGV[8] ~= '0' then
  redis.call('HSET', KEYS[5], ARGV[7], ARGV[8])
  redis.call('EXPIRE', KEYS[5], ARGV[12])
end
if ARGV[4] == 'again' then
  redis.call('HSET', KEYS[3], 'error', ARGV[11])
  redis.call('ZADD', KEYS[1], ARGV[6], ARGV[1])
  return 1
end
local log = KEYS[7]
if ARGV[4] == 'accepted' then
  log = KEYS[6]
  if ARGV[9] == '1' and redis.call('HGET', KEYS[8], 'message') == ARGV[2] then
    redis.call('ZREM', KEYS[4], ARGV[10])
  end
end
-- A log that takes nothing must not have the message sent again.
redis.pcall('XADD', log, 'MAXLEN', ARGV[13], '*', 'sink', ARGV[7], 'message', ARGV[2], 'alert', ARGV[10],
  'rule', ARGV[14], 'kind', ARGV[15], 'attempt', ARGV[3], 'detail', ARGV[11], 'at_ms', ARGV[5])
redis.pcall('EXPIRE', log, ARGV[12])
redis.call('LPOP', KEYS[2])
redis.call('DEL', KEYS[3])
if redis.call('LLEN', KEYS[2]) > 0 then
  redis.call('ZADD', KEYS[1], ARGV[5], ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
