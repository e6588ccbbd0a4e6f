-- Merge a record into what is known of its breaker; the mirror of `records.merged`.
--
-- KEYS  breakers, told
-- ARGV  time; the breaker's key; the record as JSON; milliseconds for which records are kept at least;
--       how many news are kept, and for how many milliseconds; after how many new breakers to look for old ones
-- Returns the entry that stands, and the time.

local RANKS = { closed = 0, half_open = 1, open = 2, isolated = 3 }
local ENDLESS = -1

local now = milliseconds()

-- By code point, as Python does; `<` would ask the server's locale.
local function text_order(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then
      return x < y and -1 or 1
    end
  end
  return #a == #b and 0 or (#a < #b and -1 or 1)
end

local function number_order(a, b)
  return a == b and 0 or (a < b and -1 or 1)
end

-- The mirror of `records._weight`: all that two records may differ in, the decisive first.
local function order(a, b)
  local orders = {
    number_order(a.orders, b.orders),
    number_order(a.era, b.era),
    number_order(RANKS[a.state], RANKS[b.state]),
    number_order(a.rest, b.rest),
    text_order(a.replica, b.replica),
    number_order(a.since, b.since),
    number_order(a.level, b.level),
    text_order(a.reason, b.reason),
  }
  for _, each in ipairs(orders) do
    if each ~= 0 then
      return each
    end
  end
  return 0
end

local function record(json, told_at)
  local read = cjson.decode(json)
  local passed = math.max(0, now - told_at)
  read.json, read.told_at = json, told_at
  read.rest = read.rest == ENDLESS and math.huge or math.max(0, read.rest - passed)
  read.since = read.since + passed
  return read
end

local TYPES = { orders = "number", level = "number", replica = "string", reason = "string" }

local function understood(read)
  for field, kind in pairs(TYPES) do
    if type(read[field]) ~= kind then
      return false
    end
  end
  return RANKS[read.state] ~= nil
end

-- Return what is kept of the breaker; nil if that is nothing, was kept long enough, or is not understood.
local function known()
  local entry = redis.call("HGET", KEYS[1], ARGV[2])
  if not entry then
    return nil
  end
  local told_at, kept_until, era, json = entry:match("^(%d+) (-?%d+) (%d+) (.*)$")
  kept_until = tonumber(kept_until)
  if not kept_until or (kept_until ~= ENDLESS and kept_until <= now) then
    return nil
  end
  local legible, read = pcall(record, json, tonumber(told_at))
  if not legible or not understood(read) then
    return nil
  end
  read.era, read.entry = tonumber(era), entry
  return read
end

local function forget_the_old()
  local entries = redis.call("HGETALL", KEYS[1])
  for i = 1, #entries, 2 do
    local kept_until = tonumber(entries[i + 1]:match("^%S+ (%S+)"))
    if not kept_until or (kept_until ~= ENDLESS and kept_until <= now) then
      redis.call("HDEL", KEYS[1], entries[i])
    end
  end
end

local ours, theirs = known(), record(ARGV[3], now)
local winner, loser = theirs, ours
if ours and order(ours, theirs) >= 0 then
  winner, loser = ours, theirs
end
local least = loser and loser.era + (winner.state ~= loser.state and 1 or 0) or 0
if winner.era < least then
  winner.era = least  -- an era never goes back, and whoever held another state has seen a transition
elseif winner == ours then
  return { ours.entry, whole(now) }
end

local kept = math.max(tonumber(ARGV[4]), 2 * winner.rest)
local for_ever = kept == math.huge or redis.call("PTTL", KEYS[1]) == -1
local kept_until = kept == math.huge and ENDLESS or now + kept
local entry = table.concat({ whole(winner.told_at), whole(kept_until), whole(winner.era), winner.json }, " ")
if redis.call("HSET", KEYS[1], ARGV[2], entry) == 1 and redis.call("HLEN", KEYS[1]) % ARGV[7] == 0 then
  forget_the_old()
end
if for_ever then
  redis.call("PERSIST", KEYS[1])
else
  keep(KEYS[1], kept)
end
redis.call("XADD", KEYS[2], "MAXLEN", "~", ARGV[5], "*", "breaker", entry)
keep(KEYS[2], tonumber(ARGV[6]))
return { entry, whole(now) }
