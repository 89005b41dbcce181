-- Hands leased entries back at once, on shutdown: their lease is made to look long expired, so the
-- next reader takes them over. The consumer is removed when it holds nothing more.
--
-- KEYS[1] stream   ARGV[1] group  [2] consumer  [3] nobody (the name that holds them meanwhile)
local ids = {}
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  ids[#ids + 1] = row[1]
end
for first = 1, #ids, 1000 do
  local some = {unpack(ids, first, math.min(first + 999, #ids))}
  some[#some + 1] = 'IDLE'
  some[#some + 1] = 86400000
  some[#some + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(some))
end
-- What a consumer still holds would go with it, never to be delivered again.
if #ids < 100000 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
return #ids
