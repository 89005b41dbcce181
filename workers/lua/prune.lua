-- Removes consumers of workers that are gone: nothing leased, not heard of for long, and no presence. (Before 7.2,
-- a consumer for which nothing comes is not heard of either.)
-- In one step, since removing a consumer that holds entries would lose them.
--
-- KEYS streams   ARGV[1] group  [2] idle_ms
for _, stream in ipairs(KEYS) do
  -- A flush may have taken the group just now; an error's table has no rows.
  for _, row in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, ARGV[1])) do
    local fields = pairs_of(row)
    local presence = stream:match('^.*}:') .. 'workers:' .. fields.name
    local idle = tonumber(fields.pending) == 0 and tonumber(fields.idle) > tonumber(ARGV[2])
    if idle and redis.call('EXISTS', presence) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], fields.name)
    end
  end
end
