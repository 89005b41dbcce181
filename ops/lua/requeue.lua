-- Puts dead letters back as requests, each in one step: it is a letter or a request, never both.
--
-- KEYS[1] dead letter stream   [2..4] streams of the levels high, normal, low
-- KEYS[5..7] their byte counters   [8] stats hash
-- ARGV[1] entries_max  [2] bytes_max  (of all levels together, as for every submit)
-- ARGV[3..] per letter four values: letter id, level (1, 2 or 3), request id, payload
--
-- Returns per letter: "ok", "gone" (somebody else replayed, purged or trimmed it), "full" (no room in
-- the queue; this one and all after it stay dead letters) or "refused" (the server takes nothing
-- into this stream; the letter stays).
local try, entries, bytes = redis.pcall, 0, 0
for level = 1, 3 do
  entries = entries + (tonumber(try('XLEN', KEYS[1 + level])) or 0)
  bytes = bytes + math.max(0, tonumber(try('GET', KEYS[4 + level])) or 0)
end
local out, full, added, replayed = {}, false, {0, 0, 0}, 0
for i = 3, #ARGV, 4 do
  local letter, level, id, payload = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  full = full or entries + 1 > tonumber(ARGV[1]) or bytes + #payload > tonumber(ARGV[2])
  if full then
    out[#out + 1] = 'full'
  elseif not redis.call('XRANGE', KEYS[1], letter, letter)[1] then
    out[#out + 1] = 'gone'
  elseif type(try('XADD', KEYS[1 + level], '*', 'request', payload, 'id', id)) == 'table' then
    out[#out + 1] = 'refused'
  else
    redis.call('XDEL', KEYS[1], letter)
    entries, bytes, added[level] = entries + 1, bytes + #payload, added[level] + #payload
    replayed = replayed + 1
    out[#out + 1] = 'ok'
  end
end
for level = 1, 3 do
  if added[level] > 0 then try('INCRBY', KEYS[4 + level], added[level]) end
end
if replayed > 0 then try('HINCRBY', KEYS[8], 'replayed', replayed) end
return out
