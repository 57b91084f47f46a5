-- Makes the caller the owner of a partition's state: every earlier owner's writes are refused from now on.
--
-- KEYS[1]  the partition's header hash (its fields are described in put.lua)
-- ARGV[1]  prefix of the partition's bucket keys
-- ARGV[2]  '1' drops what is stored first, but for the epoch
--
-- Returns the header as a flat list of fields and values, the new epoch among them.
--
-- Bucket keys are not declared: their names are made from the header, and share its hash slot.

local head, prefix, reset = KEYS[1], ARGV[1], ARGV[2] == '1'

-- The server's clock keeps epochs rising even when the server lost its data in between.
local now = redis.call('TIME')
local now_us = now[1] * 1000000 + now[2]
local epoch = math.max(tonumber(redis.call('HGET', head, 'epoch') or 0) + 1, now_us)

if reset then
    local stored = redis.call('HGETALL', head)
    for i = 1, #stored, 2 do
        local bucket = string.match(stored[i], '^b(%d+)$')
        if bucket then
            local generation = string.match(stored[i + 1], '^[^:]*')
            redis.call('UNLINK', prefix .. bucket .. ':' .. generation)
        end
    end
    redis.call('UNLINK', head)
end
redis.call('HSET', head, 'epoch', string.format('%.0f', epoch))
return redis.call('HGETALL', head)
