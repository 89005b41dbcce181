-- Takes a request back that no worker has at the moment, wherever it waits.
--
-- KEYS[1..5] streams by place: requests:high, requests, requests:low, fallback, fallback:secondary
-- KEYS[6..10] their byte counters   KEYS[11] seen key of the request   KEYS[12] stats hash
-- ARGV[1] client, as for submit.lua   [2] group
--
-- Returns 1 when it was removed, now or by an earlier call whose reply was lost (no final answer will
-- come; another submit may use its id again), else 0: a worker has it, it is answered, it was sent
-- longer ago than the window, or it is another client's.
local client, try = ARGV[1] .. ' ', redis.pcall
local seen = try('GET', KEYS[11])
if type(seen) ~= 'string' or string.sub(seen, 1, #client) ~= client then return 0 end
if string.sub(seen, -10) == ' cancelled' then return 1 end
local call, place, id = string.match(seen, '^%S+ (%S+) ([1-5]) (%S+)$')
-- The form of the first version: "<client id> <entry id>", always on the one stream there was.
if not call then call, place, id = '-', '2', string.match(seen, '(%S+)$') end
local stream = KEYS[tonumber(place)]
-- What anybody else wrote under this id may be no entry's at all. No rights are an error.
local found = try('XRANGE', stream, id or '', id or '')
local text = tostring(found.err)
if found.err and not (string.find(text, 'WRONGTYPE') or string.find(text, 'stream ID')) then return found end
local row = found[1]
if not row then return 0 end
-- Without a group nothing was ever leased; an error's table has no rows.
local lease = try('XPENDING', stream, ARGV[2], id, id, 1)
if lease.err and not string.find(tostring(lease.err), 'NOGROUP') then return lease end
if #lease > 0 then return 0 end
redis.call('XDEL', stream, id)
-- Removed: nothing below may say otherwise.
try('DECRBY', KEYS[5 + place], #row[2][2])
try('SET', KEYS[11], client .. call .. ' cancelled', 'KEEPTTL')
try('HINCRBY', KEYS[12], 'cancelled', 1)
return 1
