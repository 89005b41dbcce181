-- Put before each script of this folder when it is loaded (workers/engine/queue.py).

-- The server's time, epoch ms.
local function time_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- A flat list of names and values as a table.
local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
-- The entries of a stream that a consumer holds: deliveries by id; or nil and an error. Without a group,
-- after a flush, or without a stream, nobody holds anything. XPENDING by consumer walks that consumer's
-- own list, so its cost is the size of the lease and not of the queue.
local function held_by(consumer, stream, group)
  local rows, held = redis.pcall('XPENDING', stream, group, '-', '+', 100000, consumer), {}
  local text = tostring(rows.err)
  if rows.err and not (string.find(text, 'NOGROUP') or string.find(text, 'WRONGTYPE')) then return nil, rows end
  for _, row in ipairs(rows) do held[row[1]] = row[4] end
  return held
end
-- Runs a command with many ids at its end, a thousand at a time; returns how many they are.
local function with_ids(ids, ...)
  for first = 1, #ids, 1000 do
    local words = {...}
    for n = first, math.min(first + 999, #ids) do words[#words + 1] = ids[n] end
    redis.call(unpack(words))
  end
  return #ids
end

