-- Renews the lease of the entries that a worker has in hand. One that another worker has taken over
-- stays there: the renewal is fenced like the finish. One that this worker holds and has given up, or
-- knows nothing of because the answer to its read was lost, is not named, and its lease runs out.
--
-- KEYS[1] stream   ARGV[1] group  [2] consumer  [3..] ids, up to a thousand
-- Returns how many were renewed.
local held, ids = {}, {}
-- A flush may have taken the group just now; an error's table has no rows.
for _, row in ipairs(redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  held[row[1]] = true
end
for i = 3, #ARGV do
  if held[ARGV[i]] then ids[#ids + 1] = ARGV[i] end
end
if #ids > 0 then
  ids[#ids + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
end
return #ids > 0 and #ids - 1 or 0
