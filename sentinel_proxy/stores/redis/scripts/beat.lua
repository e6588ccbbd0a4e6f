-- Say that a replica is there.
--
-- KEYS  replicas
-- ARGV  time; the replica; for how many milliseconds; what it says of itself
-- Returns the replicas that are there, each followed by what it says.

local replicas, replica, duration = KEYS[1], ARGV[2], tonumber(ARGV[3])
local now = milliseconds()

redis.call("HSET", replicas, replica, whole(now + duration) .. " " .. ARGV[4])
keep(replicas, duration)

local answer = {}
local entries = redis.call("HGETALL", replicas)
for i = 1, #entries, 2 do
  local there_until, presence = entries[i + 1]:match("^(%d+) (.*)$")
  if there_until and tonumber(there_until) > now then
    table.insert(answer, entries[i])
    table.insert(answer, presence)
  else
    redis.call("HDEL", replicas, entries[i])
  end
end
return answer
