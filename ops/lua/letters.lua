-- Reads the newest dead letters without what they carry: a batch of contexts may be megabytes.
--
-- KEYS[1] dead letters   ARGV[1] most letters   [2] from which id on, downwards: '+', or '(<id>'
-- ARGV[3] most bytes that are looked through, payloads included
-- Returns for each: id, then names and values of its other fields.
local rows, from, left = {}, ARGV[2], tonumber(ARGV[3])
while #rows < tonumber(ARGV[1]) and left > 0 do
  local found = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', 1)[1]
  if not found then break end
  local row, bytes = {found[1]}, 0
  for i = 1, #found[2], 2 do
    bytes = bytes + #found[2][i + 1]
    if found[2][i] ~= 'request' then
      row[#row + 1] = found[2][i]
      row[#row + 1] = string.sub(found[2][i + 1], 1, 500)
    end
  end
  rows[#rows + 1], left, from = row, left - bytes, '(' .. found[1]
end
return rows
