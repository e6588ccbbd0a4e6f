-- What every script begins with. ARGV[1] is the time, in tests; else it is empty.

-- The server's clock is the only one that all replicas share.
local function microseconds()
  if ARGV[1] ~= "" then
    return tonumber(ARGV[1])
  end
  local time = redis.call("TIME")
  return time[1] * 1000000 + time[2]
end

local function milliseconds()
  return math.floor(microseconds() / 1000)
end

-- All digits: `..` would write 1.7e+15.
local function whole(number)
  return string.format("%.0f", number)
end

-- Let a key vanish no earlier than it would have, and not before so many milliseconds.
local function keep(key, duration)
  if redis.call("PTTL", key) < duration then
    redis.call("PEXPIRE", key, whole(duration))
  end
end
