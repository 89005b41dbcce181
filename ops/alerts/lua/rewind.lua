-- Moves what waits for its time back with the server's clock, so that it waits no longer than it should.
--
-- KEYS[1] due   [2] waiting (zsets: member -> time)   [3] pace (hash: sink -> time)   ARGV[1] by how much, ms
for number = 1, 2 do
  for _, member in ipairs(redis.call('ZRANGE', KEYS[number], 0, -1)) do
    redis.call('ZINCRBY', KEYS[number], -ARGV[1], member)
  end
end
for _, sink in ipairs(redis.call('HKEYS', KEYS[3])) do redis.call('HINCRBY', KEYS[3], sink, -ARGV[1]) end
return 1
