-- Hands leased entries back at once, on shutdown: their lease is made to look long expired, so the
-- next reader takes them over. The consumer is removed when it holds nothing more.
--
-- KEYS streams   ARGV[1] group  [2] consumer  [3] nobody (the name that holds them meanwhile)
local released = 0
for _, stream in ipairs(KEYS) do
  local ids = {}
  for _, row in ipairs(redis.call('XPENDING', stream, ARGV[1], '-', '+', 100000, ARGV[2])) do
    ids[#ids + 1] = row[1]
  end
  for first = 1, #ids, 1000 do
    local some = {unpack(ids, first, math.min(first + 999, #ids))}
    some[#some + 1] = 'IDLE'
    some[#some + 1] = 86400000
    some[#some + 1] = 'JUSTID'
    redis.call('XCLAIM', stream, ARGV[1], ARGV[3], 0, unpack(some))
  end
  -- What a consumer still holds would go with it, never to be delivered again.
  if #ids < 100000 then redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], ARGV[2]) end
  released = released + #ids
end
return released
