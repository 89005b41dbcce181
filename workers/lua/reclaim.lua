-- Takes over entries whose lease ran out: their worker died, or is stuck. That is no delivery: the
-- answer may be lost on its way, and then nobody saw them. begin.lua counts, when work on them begins.
--
-- KEYS    streams, the most urgent first
-- ARGV[1] group  [2] consumer  [3] lease_ms  [4] most entries  [5..] where to go on looking, one per
--         stream ("0-0" at first)
-- Returns { where to go on, one per stream ("0-0": all were looked at), entries }, an entry being
-- { number of its stream, id, deliveries so far, fields }. Whoever reads next does this, so that no
-- recovery lock exists that a dead worker could hold. XAUTOCLAIM looks at ten times the number at
-- most, and so stays short when a great many entries are leased by workers that are well.
local left, onward, out = tonumber(ARGV[4]), {}, {}
for number, stream in ipairs(KEYS) do
  onward[number] = ARGV[4 + number]
  if left > 0 then
    local found = redis.call('XAUTOCLAIM', stream, ARGV[1], ARGV[2], ARGV[3], onward[number],
      'COUNT', left, 'JUSTID')
    onward[number] = found[1]
    for _, entry in ipairs(found[2]) do
      local record = redis.call('XPENDING', stream, ARGV[1], entry, entry, 1)[1]
      local row = redis.call('XRANGE', stream, entry, entry)[1]
      out[#out + 1] = {number, entry, record[4], row and row[2] or {}}
      left = left - 1
    end
  end
end
return {onward, out}
