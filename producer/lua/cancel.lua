-- Takes a request back that no worker has leased yet.
--
-- KEYS[1] requests stream   KEYS[2] byte counter of that stream   KEYS[3] seen key of the request
-- KEYS[4] stats hash        ARGV[1] client id   [2] group
--
-- Returns 1 when it was removed, now or by an earlier call whose reply was lost (it will never be
-- answered; its id may be used again), else 0: a worker has it, it is answered or escalated, or it
-- is another client's.
local client = ARGV[1] .. ' '
local seen = redis.call('GET', KEYS[3])
if not seen or string.sub(seen, 1, #client) ~= client then return 0 end
local id = string.sub(seen, #client + 1)
if id == 'cancelled' then return 1 end
local rows = redis.call('XRANGE', KEYS[1], id, id)
if #rows == 0 then return 0 end
local leased = redis.pcall('XPENDING', KEYS[1], ARGV[2], id, id, 1)
-- Without a group nothing was ever leased; the error table has no rows.
if #leased > 0 then return 0 end
redis.call('XDEL', KEYS[1], id)
redis.call('DECRBY', KEYS[2], #rows[1][2][2])
redis.call('SET', KEYS[3], client .. 'cancelled', 'KEEPTTL')
redis.call('HINCRBY', KEYS[4], 'cancelled', 1)
return 1
