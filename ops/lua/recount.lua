-- Counts the payload bytes of a stream anew.
--
-- KEYS[1] stream   KEYS[2] its byte counter   Returns the bytes.
local bytes, from = 0, '-'
while true do
  local rows = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 100)
  if #rows == 0 then break end
  for _, row in ipairs(rows) do
    for i = 1, #row[2], 2 do
      if row[2][i] == 'request' then bytes = bytes + #row[2][i + 1] end
    end
  end
  from = '(' .. rows[#rows][1]
end
if bytes == 0 then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], string.format('%.0f', bytes)) end
return bytes
