-- Tells the server's time, and begins every lease anew when that went back.
--
-- KEYS[1] the latest time that was seen here, ms   KEYS[2..] streams with leases
-- ARGV[1] group  [2] lease_ms
-- Returns the time as TIME does, and how many leases began anew.
--
-- The server counts a lease by its wall clock, and calls it new while it was given in what is now the
-- future: after a step back of an hour, what a dead worker holds would stay with it for that hour. Each
-- worker asks each second, so that no lease is given much later than the last time that was seen. Who
-- lives renews again within a second; what nobody renews runs out one lease from now.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local seen_ms = tonumber(redis.pcall('GET', KEYS[1])) or 0
-- Out of memory it takes no note; leases are to be renewed all the same.
redis.pcall('SET', KEYS[1], string.format('%.0f', now_ms), 'PX', 86400000)
local renewed = 0
if seen_ms - now_ms > tonumber(ARGV[2]) then
  for number = 2, #KEYS do
    local from = '-'
    repeat
      -- A stream without a group has no leases; an error's table has no rows.
      local rows = redis.pcall('XPENDING', KEYS[number], ARGV[1], from, '+', 1000)
      for _, row in ipairs(rows) do
        redis.call('XCLAIM', KEYS[number], ARGV[1], row[2], 0, row[1], 'JUSTID')
        from = '(' .. row[1]
      end
      renewed = renewed + #rows
    until #rows < 1000
  end
end
return {tonumber(clock[1]), tonumber(clock[2]), renewed}
