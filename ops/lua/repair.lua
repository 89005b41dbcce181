-- Makes a stream usable again: all that it holds is put into a new one, in order, in one step.
--
-- What is there keeps its id, by which its age is known and clients tell whether their requests are still
-- there (producer/session/losses.py). Ids that are ahead of the server's clock are what is mended: they become new.
--
-- KEYS[1] stream   KEYS[2] where its entries are put meanwhile   KEYS[3] byte counter, if it has one
-- ARGV[1] group, or ''   [2] prefix of the seen keys, or ''   [3] place of the stream, or ''
-- ARGV[4] most words of an entry that are kept: the names and values that we write are fewer
-- Returns how many entries were moved, or -1 when something else had the stream's name, which is gone.
--
-- What is leased waits again: its worker has lost it, as by a lease that ran out.
local call, stream, aside = redis.call, KEYS[1], KEYS[2]
local kind, moved, bytes, now_s = call('TYPE', stream).ok, 0, 0, tonumber(call('TIME')[1])
if kind == 'stream' then
  call('RENAME', stream, aside)
elseif kind ~= 'none' then
  call('DEL', stream)
  moved = -1
end
if ARGV[1] ~= '' then redis.pcall('XGROUP', 'CREATE', stream, ARGV[1], 0, 'MKSTREAM') end
local function bring_back(id, fields)
  local kept = {unpack(fields, 1, math.min(#fields, tonumber(ARGV[4])))}
  local is_ahead = tonumber(string.match(id, '^%d+')) >= (now_s + 1) * 1000
  local new_id, request = call('XADD', stream, is_ahead and '*' or id, unpack(kept)), nil
  for i = 1, #kept, 2 do
    if kept[i] == 'request' then bytes = bytes + #kept[i + 1] end
    if kept[i] == 'id' then request = kept[i + 1] end
  end
  if ARGV[2] ~= '' and request then
    -- Who sent it finds it by its id, to take it back.
    local seen, here = redis.pcall('GET', ARGV[2] .. request), ' ' .. ARGV[3] .. ' ' .. id
    if type(seen) == 'string' and string.sub(seen, -#here) == here then
      call('SET', ARGV[2] .. request, string.sub(seen, 1, -#id - 1) .. new_id, 'KEEPTTL')
    end
  end
end
while true do
  local rows = call('XRANGE', aside, '-', '+', 'COUNT', 100)
  if #rows == 0 then break end
  for _, row in ipairs(rows) do
    bring_back(row[1], row[2])
    call('XDEL', aside, row[1])
  end
  moved = moved + #rows
end
call('DEL', aside)
if KEYS[3] then call('SET', KEYS[3], string.format('%.0f', bytes)) end
return moved
