-- Adds the times of the stages that a worker counted.
--
-- KEYS[1] the counts since the first request   KEYS[2] those of this minute   ARGV[1] lifetime of those, ms
-- ARGV[2..] three values each: field, field of the minute, number
for i = 2, #ARGV, 3 do
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 2])
  redis.call('HINCRBY', KEYS[2], ARGV[i + 1], ARGV[i + 2])
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
