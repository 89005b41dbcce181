-- Settles what one AMN worker decided with the shared budget, and grants what it may escalate next.
--
-- KEYS[1] window hash: fields "<bucket>:<stat>", stat one of n (requests decided), h and s (escalated
--         by hard and by soft rules), w (soft candidates); buckets are sixtieths of the window
-- KEYS[2] state hash: tokens, file (those of the rows of files), since_ms, and for people: n, h, s, w of the window, rate, at_ms, over, infeasible
-- ARGV[1] now_ms (0: the server's clock)  [2] window_ms  [3] rate  [4] reserve
-- ARGV[5] n  [6] h  [7] s  [8] w since the last call  [9] grants wanted (below 0: handed back)
-- ARGV[10] 1 when soft escalations are not limited by grants (a budget that only observes)
-- ARGV[11] share from which on hard escalations are too many
-- ARGV[12] rows of files since the last call  [13] of them those that their client chose for a fallback
-- Returns granted, and of the window n, h, s, w.
--
-- A token bucket counted in requests: each request earns rate - reserve, each escalation costs one. A
-- grant is paid for when it is made, so a worker that dies with grants in its hands has spent them.
-- Hard escalations are paid for afterwards and may leave a debt, which soft ones then wait for; a debt
-- older than a window is forgiven. What is not granted at once the bucket keeps, up to five seconds of
-- mean traffic's earnings: over any stretch of n requests soft rules spend at most (rate - reserve) * n
-- plus that.
local window_ms, rate, reserve = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now_ms = tonumber(ARGV[1])
if now_ms == 0 then now_ms = time_ms() end
local bucket = math.floor(now_ms / (window_ms / 60))
local names, told = {'n', 'h', 's', 'w'}, {}
-- Both keys are read before either is written: what cannot be settled whole is not begun.
local fields, state = redis.call('HGETALL', KEYS[1]), redis.call('HMGET', KEYS[2], 'tokens', 'since_ms', 'file')
local of_files = {n = tonumber(ARGV[12]), h = 0, s = tonumber(ARGV[13]), w = 0}
for i, name in ipairs(names) do
  told[name] = tonumber(ARGV[4 + i]) + of_files[name]
  if told[name] > 0 then redis.call('HINCRBY', KEYS[1], bucket .. ':' .. name, told[name]) end
end

local sums, old = told, {}
for i = 1, #fields, 2 do
  local at, name = string.match(fields[i], '^(%d+):(%a)$')
  -- What is from the future is of before the server's clock went back, and begins anew.
  if at and tonumber(at) > bucket - 60 and tonumber(at) <= bucket then
    sums[name] = (sums[name] or 0) + (tonumber(fields[i + 1]) or 0)
  else
    old[#old + 1] = fields[i]
  end
end
if #old > 0 then redis.call('HDEL', KEYS[1], unpack(old)) end

local earned = (rate - reserve) * tonumber(ARGV[5])
local tokens = (tonumber(state[1] or '0') or 0) + earned - tonumber(ARGV[6])
if ARGV[10] == '1' then tokens = tokens - tonumber(ARGV[7]) end
-- Rows of a file are counted before those that are chosen of them. What files keep is no more than a window's.
local file = (tonumber(state[3] or '0') or 0) + (rate - reserve) * of_files.n - of_files.s
tokens, file = tokens + math.min(file, 0), math.min(math.max(file, 0), rate * sums.n)
local wanted = tonumber(ARGV[9])
if wanted < 0 then tokens = tokens - wanted end
local granted = 0
if wanted > 0 and ARGV[10] ~= '1' then granted = math.max(0, math.floor(math.min(wanted, tokens))) end
local since_ms = math.min(tonumber(state[2] or now_ms) or now_ms, now_ms)
local spell_ms = math.min(window_ms, math.max(1, now_ms - since_ms))
local most = math.max(5, (rate - reserve) * sums.n * 5000 / spell_ms)
tokens = math.max(math.min(tokens - granted, most), -rate * sums.n)

local over = sums.h + sums.s > rate * sums.n and sums.n > 0
local infeasible = sums.n >= 100 and sums.h > tonumber(ARGV[11]) * sums.n
redis.call('HSET', KEYS[2], 'tokens', string.format('%.3f', tokens), 'file', string.format('%.3f', file), 'n', sums.n, 'h', sums.h, 's', sums.s,
  'w', sums.w, 'since_ms', string.format('%.0f', since_ms), 'rate', ARGV[3], 'at_ms', string.format('%.0f', now_ms), 'over', over and 1 or 0,
  'infeasible', infeasible and 1 or 0)
if over then redis.call('HINCRBY', KEYS[2], 'over_total', 1) end
redis.call('PEXPIRE', KEYS[1], 2 * window_ms)
redis.call('PEXPIRE', KEYS[2], 2 * window_ms)
return {granted, sums.n, sums.h, sums.s, sums.w}
