-- Reads the state of streams at one moment, without what their entries carry, which may be megabytes.
--
-- KEYS streams   ARGV[1] group   [2] idle_ms of a stale lease   [3] most stale leases that are counted
-- Returns for each: entries, id of the oldest or '', leased entries, stale ones; nothing of what is no stream.
local function asked(...)
  local found = redis.pcall(...)
  if type(found) == 'table' and found.err then return nil end
  return found
end
local rows = {}
for n, stream in ipairs(KEYS) do
  local entries, row = asked('XLEN', stream), {}
  if entries then
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    local leased, stale = asked('XPENDING', stream, ARGV[1]), 0  -- fails where no worker ever was
    leased = leased and leased[1] or 0
    if leased > 0 then
      stale = #redis.call('XPENDING', stream, ARGV[1], 'IDLE', ARGV[2], '-', '+', ARGV[3])
    end
    row = {entries, oldest and oldest[1] or '', leased, stale}
  end
  rows[n] = row
end
return rows
