-- Decide about some requests as `SlidingLog.admit` does, one after the other. The only script that
-- calls wait for.
--
-- KEYS  the client's log: when each of its admitted requests came, in microseconds, oldest first
-- ARGV  time; how many may come in a window; the window in microseconds; how many have come
-- Returns how many of them are admitted; how many more would be now; and, in microseconds, when one
-- will be if none would, and when the whole limit is free again.

local log, limit, window, requests = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = microseconds()

local newest = redis.call("LINDEX", log, -1)
if newest and tonumber(newest) > now then  -- the clock was set back; nobody is locked out for that
  redis.call("DEL", log)
  newest = false
end
local oldest = newest and redis.call("LINDEX", log, 0)
while oldest and tonumber(oldest) + window <= now do
  redis.call("LPOP", log)
  oldest = redis.call("LINDEX", log, 0)
end

local count = redis.call("LLEN", log)
local admitted = math.max(0, math.min(requests, limit - count))
if admitted > 0 then
  for _ = 1, admitted do
    redis.call("RPUSH", log, whole(now))
  end
  redis.call("PEXPIRE", log, whole(window / 1000 + 1000))
  count, newest = count + admitted, now
end
if count < limit then
  return { admitted, limit - count, 0, window }
end
-- More than the limit are there after it was lowered: they all have to go first.
local last_to_go = tonumber(redis.call("LINDEX", log, count - limit))
return { admitted, 0, last_to_go + window - now, tonumber(newest) + window - now }
