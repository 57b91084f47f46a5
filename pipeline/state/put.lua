-- Writes a partition's state, or a part of it, as one step.
--
-- KEYS[1]  the partition's header hash:
--            epoch     of the owner who claimed last
--            schema    of these fields and of the bucket hashes
--            offset    the state holds every record below it; missing or empty: nothing is stored
--            writer    the epoch under which offset was written
--            header    the caller's own bytes
--            b<N>      bucket N: '<generation>:<rows>'; its rows are the hash <prefix><N>:<generation>
-- ARGV[1]  prefix of the partition's bucket keys
-- ARGV[2]  schema
-- ARGV[3]  epoch of the caller
-- ARGV[4]  base: a delta is taken only on top of this offset; empty: the state is written whole
-- ARGV[5]  offset that the state is valid at after this write
-- ARGV[6]  header
-- ARGV[7]  generation of the buckets that this write makes
-- ARGV[8]  S, the number of staged buckets
-- then S times: bucket, rows that lie under its key of the new generation (0: the bucket is dropped)
-- then, until the end, for each bucket that is changed in place:
--          bucket, R, W, then R fields to delete, then W times field and value to set
--
-- Returns 'ok', 'need_whole', 'stale_epoch', 'stale_offset', or 'lost' when staged rows are gone.
--
-- Bucket keys are not declared: their names are made from the header, and share its hash slot.

local head, prefix, schema, epoch = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local base, offset, generation = ARGV[4], ARGV[5], ARGV[7]
local whole = base == ''
local CHUNK = 1000 -- values to one call: Lua's unpack fails at about 8,000

local staged, staged_until = {}, 8 + 2 * ARGV[8]
for i = 9, staged_until, 2 do
    staged[ARGV[i]] = tonumber(ARGV[i + 1])
end

-- Staged rows are of no use to a write that is refused. They stay where an earlier run of this same call
-- was taken and only its reply got lost.
local function refused(result)
    for bucket in pairs(staged) do
        local current = redis.call('HGET', head, 'b' .. bucket) or ''
        if string.match(current, '^[^:]*') ~= generation then
            redis.call('UNLINK', prefix .. bucket .. ':' .. generation)
        end
    end
    return result
end

local fields = redis.call('HMGET', head, 'epoch', 'schema', 'offset', 'writer')
local stored_epoch, stored_offset = tonumber(fields[1] or 0), fields[3] or ''
local mine = stored_epoch == epoch and fields[4] == ARGV[3]

if stored_epoch > epoch then
    return refused('stale_epoch')
end
if mine and stored_offset == offset then
    return refused('ok') -- it was taken before, only its reply got lost
end
if mine and stored_offset ~= '' and tonumber(stored_offset) > tonumber(offset) then
    return refused('stale_offset')
end
-- An epoch below the caller's: the server lost the claim, and perhaps more.
if not whole and (stored_epoch ~= epoch or fields[2] ~= schema or stored_offset ~= base) then
    return refused('need_whole')
end
for bucket, rows in pairs(staged) do
    if redis.call('HLEN', prefix .. bucket .. ':' .. generation) ~= rows then
        return refused('lost')
    end
end

local key_of, replaced = {}, {}
local stored = redis.call('HGETALL', head)
for i = 1, #stored, 2 do
    local bucket = string.match(stored[i], '^b(%d+)$')
    if bucket then
        local old_generation, rows = string.match(stored[i + 1], '^([^:]*):(%d+)$')
        local key = prefix .. bucket .. ':' .. old_generation
        if whole or staged[bucket] then
            replaced[bucket] = key
        elseif redis.call('HLEN', key) ~= tonumber(rows) then
            return refused('need_whole') -- rows were evicted; more rows on top would make it look complete
        else
            key_of[bucket] = { key, old_generation }
        end
    end
end

-- The first write empties the offset: should the script fail below, nothing counts as stored.
redis.call('HSET', head, 'offset', '')
for bucket, key in pairs(replaced) do
    redis.call('UNLINK', key)
    redis.call('HDEL', head, 'b' .. bucket)
end
for bucket, rows in pairs(staged) do
    if rows > 0 then
        redis.call('PERSIST', prefix .. bucket .. ':' .. generation)
        redis.call('HSET', head, 'b' .. bucket, generation .. ':' .. rows)
    end
end

local function in_chunks(command, key, first, last)
    for i = first, last, CHUNK do
        redis.call(command, key, unpack(ARGV, i, math.min(i + CHUNK - 1, last)))
    end
end

local at = staged_until + 1
while at <= #ARGV do
    local bucket, removed, set = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local found = key_of[bucket] or { prefix .. bucket .. ':' .. generation, generation }
    in_chunks('HDEL', found[1], at + 3, at + 2 + removed)
    in_chunks('HSET', found[1], at + 3 + removed, at + 2 + removed + 2 * set)
    local rows = redis.call('HLEN', found[1])
    if rows > 0 then
        redis.call('HSET', head, 'b' .. bucket, found[2] .. ':' .. rows)
    else
        redis.call('HDEL', head, 'b' .. bucket)
    end
    at = at + 3 + removed + 2 * set
end

redis.call('HSET', head, 'epoch', ARGV[3], 'schema', schema, 'writer', ARGV[3], 'header', ARGV[6],
    'offset', offset)
return 'ok'
