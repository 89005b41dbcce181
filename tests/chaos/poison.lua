-- Poison straight into the fallback stream, once however often it is sent. For the chaos run only.
--
-- KEYS[1] fallback stream   [2] its byte counter   [3] marker of this one   [4] stats hash
-- ARGV[1] payload   [2] bytes in place of an answer   [3] ms to remember the marker
if redis.call('SET', KEYS[3], 1, 'NX', 'PX', ARGV[3]) then
  redis.call('XADD', KEYS[1], '*', 'request', ARGV[1], 'answer', ARGV[2])
  redis.call('INCRBY', KEYS[2], #ARGV[1])
  redis.call('HINCRBY', KEYS[4], 'chaos:direct', 1)
end
