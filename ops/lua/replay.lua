-- Puts dead letters back as requests, each in one step: it is a letter or a request, never both.
--
-- KEYS[1] dead letter stream   [2..4] streams of the levels high, normal, low
-- KEYS[5..7] their byte counters   [8] stats hash
-- ARGV[1] entries_max  [2] bytes_max  (of all levels together, as for every submit)
-- ARGV[3..] per letter four values: letter id, level (1, 2 or 3), request id, payload
--
-- Returns per letter: "ok", "gone" (somebody else replayed, purged or trimmed it) or "full" (no room
-- in the queue; this one and all after it stay dead letters).
local entries, bytes = 0, 0
for level = 1, 3 do
  entries = entries + redis.call('XLEN', KEYS[1 + level])
  bytes = bytes + tonumber(redis.call('GET', KEYS[4 + level]) or '0')
end
local out, full, added, replayed = {}, false, {0, 0, 0}, 0
for i = 3, #ARGV, 4 do
  local letter, level, id, payload = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  full = full or entries + 1 > tonumber(ARGV[1]) or bytes + #payload > tonumber(ARGV[2])
  if full then
    out[#out + 1] = 'full'
  elseif redis.call('XDEL', KEYS[1], letter) == 0 then
    out[#out + 1] = 'gone'
  else
    redis.call('XADD', KEYS[1 + level], '*', 'request', payload, 'id', id)
    entries, bytes, added[level] = entries + 1, bytes + #payload, added[level] + #payload
    replayed = replayed + 1
    out[#out + 1] = 'ok'
  end
end
for level = 1, 3 do
  if added[level] > 0 then redis.call('INCRBY', KEYS[4 + level], added[level]) end
end
if replayed > 0 then redis.call('HINCRBY', KEYS[8], 'replayed', replayed) end
return out
