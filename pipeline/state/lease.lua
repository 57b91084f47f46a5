-- Takes, keeps or gives back the hold of a piece of work that one program does at a time.
--
-- KEYS[1]  the work's hash:
--            token     of the newest hold; it rises with each, and so tells an older one from a newer
--            holder    who took it
--            until_us  when it ends, on the server's clock
-- ARGV[1]  'take', 'keep' or 'give'
-- ARGV[2]  holder
-- ARGV[3]  length of the hold in microseconds
--
-- Returns the token where the caller holds the work now (or, after 'give', did), 0 where it does not.
--
-- The hash never expires: its token must not be forgotten.

local work, action, holder, length_us = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = redis.call('TIME')
local now_us = now[1] * 1000000 + now[2]

local fields = redis.call('HMGET', work, 'token', 'holder', 'until_us')
local token, mine = tonumber(fields[1] or 0), fields[2] == holder
local free = tonumber(fields[3] or 0) <= now_us

if action == 'take' and free then
    -- The clock keeps tokens rising even where the server lost its data in between.
    token, mine = math.max(token + 1, now_us), true
elseif not mine then
    return 0
end
-- A hold that ended and that nobody took since goes on; who asks again after a lost reply has what it took.
redis.call('HSET', work, 'token', string.format('%.0f', token), 'holder', holder,
    'until_us', string.format('%.0f', action == 'give' and 0 or now_us + length_us))
return token
