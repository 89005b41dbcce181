-- Renews the lease of everything that this consumer still holds. An entry that another worker has
-- taken over stays there: the renewal is fenced like the finish.
--
-- KEYS streams   ARGV[1] group  [2] consumer    Returns how many entries are held.
local held = 0
for _, stream in ipairs(KEYS) do
  local ids = {}
  for _, row in ipairs(redis.call('XPENDING', stream, ARGV[1], '-', '+', 100000, ARGV[2])) do
    ids[#ids + 1] = row[1]
  end
  for first = 1, #ids, 1000 do
    local some = {unpack(ids, first, math.min(first + 999, #ids))}
    some[#some + 1] = 'JUSTID'
    redis.call('XCLAIM', stream, ARGV[1], ARGV[2], 0, unpack(some))
  end
  held = held + #ids
end
return held
