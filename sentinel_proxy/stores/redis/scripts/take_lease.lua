-- Take or renew one of a few places.
--
-- KEYS  the lease
-- ARGV  time; who asks; for how many milliseconds; how many places there are
-- Returns 0, or the milliseconds until a place is free unless it is renewed.

local lease, owner, duration, places = KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = milliseconds()

redis.call("ZREMRANGEBYSCORE", lease, "-inf", whole(now))
local taken = redis.call("ZCARD", lease)
if taken < places or redis.call("ZSCORE", lease, owner) then
  redis.call("ZADD", lease, whole(now + duration), owner)
  keep(lease, duration)
  return 0
end
local next_to_go = redis.call("ZRANGE", lease, taken - places, taken - places, "WITHSCORES")
return tonumber(next_to_go[2]) - now
