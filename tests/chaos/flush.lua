-- FLUSHALL, and in the same step an account of what goes with it. For the chaos run only.
--
-- KEYS[1..5] streams by place   [6] stats hash   [7] dead letter stream   [8..] reply streams
-- Returns { { id or "", sha1 of the payload } of each waiting request,
--           { sha1, reason } of each dead letter, { reply bytes } of each unread reply, stats as a flat list }
local function pairs_of(row)
  local fields = {}
  for i = 1, #row[2], 2 do fields[row[2][i]] = row[2][i + 1] end
  return fields
end
local waiting, letters, replies = {}, {}, {}
for place = 1, 5 do
  for _, row in ipairs(redis.call('XRANGE', KEYS[place], '-', '+')) do
    local fields = pairs_of(row)
    waiting[#waiting + 1] = {fields.id or '', redis.sha1hex(fields.request or '')}
  end
end
for _, row in ipairs(redis.call('XRANGE', KEYS[7], '-', '+')) do
  local fields = pairs_of(row)
  letters[#letters + 1] = {fields.sha1, fields.reason}
end
for i = 8, #KEYS do
  for _, row in ipairs(redis.call('XRANGE', KEYS[i], '-', '+')) do
    local fields = pairs_of(row)
    if fields.reply then replies[#replies + 1] = fields.reply end
  end
end
local stats = redis.call('HGETALL', KEYS[6])
redis.call('FLUSHALL')
return {waiting, letters, replies, stats}
