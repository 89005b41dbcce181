-- Runs commands in their order, if the caller still leads; the first that fails ends it.
--
-- KEYS[1] leader (string: fence of who may write)   then the keys of the commands
-- ARGV[1] fence  [2] JSON list of commands  [3] JSON list of commands whose failure changes nothing
-- Returns 1, or 0 when another one leads: nothing was written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for _, command in ipairs(cjson.decode(ARGV[2])) do redis.call(unpack(command)) end
for _, command in ipairs(cjson.decode(ARGV[3])) do redis.pcall(unpack(command)) end
return 1
