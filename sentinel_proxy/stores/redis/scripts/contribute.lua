-- Keep what one replica knows of an incident, with what the others know of the same.
--
-- KEYS  incidents, their parts, data, of, latest: see `layout.py`
-- ARGV  time; how many incidents are kept; the contribution's key, replica and id; 1 if it is ongoing;
--       its data; then all replicas that are alive
-- Returns the incident's id, its parts as JSON, and the data of each part.

local incidents, parts_of, data_of, incident_of, latest_of = unpack(KEYS)
local room, key, replica, id, ongoing = tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6] == "1"

local alive = {}
for i = 8, #ARGV do
  alive[ARGV[i]] = true
end

-- A server that makes room by forgetting keys has taken some of it; the rest means nothing.
if redis.call("EXISTS", unpack(KEYS)) < #KEYS then
  redis.call("DEL", unpack(KEYS))
end

local function read(incident)
  return cjson.decode(redis.call("HGET", parts_of, incident))
end

local function is_ongoing(incident)
  for _, part in ipairs(read(incident).parts) do
    if part[3] then
      return true
    end
  end
  return false
end

-- The mirror of `records.joins`.
local function joins(incident)
  local goes_on = false
  for _, part in ipairs(read(incident).parts) do
    if part[2] == replica then
      return false
    end
    goes_on = goes_on or (part[3] and alive[part[2]] ~= nil)
  end
  return goes_on
end

local function forget(incident)
  local known = read(incident)
  for _, part in ipairs(known.parts) do
    redis.call("HDEL", data_of, part[1])
    redis.call("HDEL", incident_of, part[1])
  end
  if redis.call("HGET", latest_of, known.key) == incident then
    redis.call("HDEL", latest_of, known.key)
  end
  redis.call("HDEL", parts_of, incident)
  redis.call("LREM", incidents, -1, incident)
end

-- The oldest that nobody calls ongoing, or else the oldest; never the newest.
local function first_to_go()
  local ids = redis.call("LRANGE", incidents, 1, -1)
  for i = #ids, 1, -1 do
    if not is_ongoing(ids[i]) then
      return ids[i]
    end
  end
  return ids[#ids]
end

local incident = redis.call("HGET", incident_of, id)
local known
if incident then
  known = read(incident)
  for _, part in ipairs(known.parts) do
    if part[1] == id then
      part[3] = ongoing
    end
  end
else
  incident = redis.call("HGET", latest_of, key)
  if incident and joins(incident) then
    known = read(incident)
    table.insert(known.parts, { id, replica, ongoing })
  else
    incident = id
    known = { key = key, parts = { { id, replica, ongoing } } }
    redis.call("LPUSH", incidents, id)
    redis.call("HSET", latest_of, key, id)
  end
  redis.call("HSET", incident_of, id, incident)
end
local parts = cjson.encode(known)
redis.call("HSET", parts_of, incident, parts)
redis.call("HSET", data_of, id, ARGV[7])

while redis.call("LLEN", incidents) > room do
  forget(first_to_go())
end

local answer = { incident, parts }
for _, part in ipairs(known.parts) do
  table.insert(answer, redis.call("HGET", data_of, part[1]))
end
return answer
