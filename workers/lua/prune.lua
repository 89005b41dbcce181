-- Removes consumers of workers that are gone: nothing leased, and not heard of for long.
-- In one step, since removing a consumer that holds entries would lose them.
--
-- KEYS streams   ARGV[1] group  [2] idle_ms
for _, stream in ipairs(KEYS) do
  -- A flush may have taken the group just now; an error's table has no rows.
  for _, row in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, ARGV[1])) do
    local fields = pairs_of(row)
    if tonumber(fields.pending) == 0 and tonumber(fields.idle) > tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], fields.name)
    end
  end
end
