-- Renews the lease of the entries that a worker has in hand. One that another worker has taken over
-- stays there: the renewal is fenced like the finish. One that this worker holds and has given up, or
-- knows nothing of because the answer to its read was lost, is not named, and its lease runs out.
--
-- KEYS[1] stream   ARGV[1] group  [2] consumer  [3..] ids, up to a thousand
-- Returns how many were renewed.
local held, ids = held_by(ARGV[2], KEYS[1], ARGV[1]) or {}, {}
for i = 3, #ARGV do
  if held[ARGV[i]] then ids[#ids + 1] = ARGV[i] end
end
if #ids > 0 then
  ids[#ids + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
end
return math.max(#ids - 1, 0)
