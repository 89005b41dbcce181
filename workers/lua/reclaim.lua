-- Takes over entries whose lease ran out: their worker died, or is stuck.
--
-- KEYS[1] stream
-- ARGV[1] group  [2] consumer  [3] lease_ms  [4] count
-- Returns { entry id, deliveries before this one, fields } for each. Whoever reads next does this,
-- so no recovery lock exists that a dead worker could hold.
local out = {}
local idle = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', ARGV[4])
for _, row in ipairs(idle) do
  local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], row[1])
  -- An entry that was deleted meanwhile comes back empty, and its lease record is gone.
  if claimed[1] and claimed[1][2] then
    out[#out + 1] = {claimed[1][1], row[4], claimed[1][2]}
  end
end
return out
