/*
 * What is known, in words. Pure: facts and the moment in, text out; nothing here touches the page.
 * Times are milliseconds since 1970, as the proxy's clock has them; durations are seconds.
 */

/** How kinds of failure are called in a sentence: docs/failures.md, in two or three words. */
const CAUSES = {
  connect: "no connection",
  connect_timeout: "connections time out",
  reset: "connections break off",
  gateway: "gateway errors",
  overloaded: "overloaded",
  timeout: "timeouts",
  protocol: "garbled answers",
  empty: "empty answers",
  truncated: "answers break off",
  certificate: "its certificate is bad",
  credential: "it refuses our key",
  quota: "our quota is used up",
};

export const STATES = { closed: "closed", half_open: "half-open", open: "open", isolated: "isolated" };

/** Say why a breaker opened: `overloaded (503)` becomes `overloaded, 503`. */
export function cause(reason) {
  const [, kind, status] = /^(\w+)(?: \((\w+)\))?/.exec(reason ?? "") ?? [];
  const words = CAUSES[kind];
  if (!words) return reason || "no reason given";
  return /^\d{3}$/.test(status ?? "") ? `${words}, ${status}` : words;
}

/** Write a duration in at most two units: `9.4 s`, `48 s`, `1 min 32 s`, `2 h 5 min`, `3 d 4 h`. */
export function duration(seconds) {
  if (seconds < 0.95) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return coarse(seconds);
}

/** The same without fractions, for what counts on. */
export function coarse(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return pair(Math.floor(whole / 60), "min", whole % 60, "s");
  const minutes = Math.floor(whole / 60);
  if (minutes < 1440) return pair(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.floor(minutes / 60);
  return pair(Math.floor(hours / 24), "d", hours % 24, "h");
}

const pair = (large, one, small, two) => (small ? `${large} ${one} ${small} ${two}` : `${large} ${one}`);

/** Write the time of day in the reader's zone: `03:12`, with seconds where they matter. */
export function clock(time, seconds = false) {
  const date = new Date(time);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return seconds ? `${minutes}:${two(date.getSeconds())}` : minutes;
}

/** Write since when: the time of day, and the day where that is another. */
export function since(time, now) {
  const [then, today] = [new Date(time), new Date(now)];
  if (then.toDateString() === today.toDateString()) return clock(time);
  return `${then.toLocaleDateString(undefined, { day: "numeric", month: "short" })} ${clock(time)}`;
}

/** Write a number so that it does not jump about: `0`, `0.4`, `12.3`, `340`, `48 211`. */
export function amount(number) {
  if (number === null || Number.isNaN(number)) return "–";
  if (number !== 0 && number < 0.05) return "<0.1";
  if (number < 100 && !Number.isInteger(number)) return number.toFixed(1).replace(/\.0$/, "");
  return String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

export const counted = (number, noun) => `${amount(number)} ${noun}${number === 1 ? "" : "s"}`;

export function listed(names) {
  return names.length < 2 ? (names[0] ?? "") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** Say what this page does not show while the state store is away; nothing while it is there. */
export function alone(state, now) {
  if (state?.status !== "away") return "";
  const when = state.since ? ` since ${since(Date.parse(state.since), now)}` : "";
  if (state.kind === "sqlite") return `The state file is out of reach${when}: what happens now is not kept over a restart.`;
  return `The shared state is out of reach${when}: this page shows this replica alone.`;
}

/** Name whom a breaker is about: the provider, or the one model there that is in trouble. */
export function subject(provider) {
  const model = provider.breaker.model;
  return model ? `${model} at ${provider.name}` : provider.name;
}

/**
 * Say in one sentence how things are.
 *
 * @param {object} facts `providers` in the order of the chain; `incidents` newest first; `served`: who
 *     answered lately, `[{name, share}]`; `losing`: calls lost in a second, lately; `totals` of
 *     /api/metrics or null; `draining`.
 * @param {number} now
 * @returns {{level: "well"|"watch"|"coping"|"down", text: string, calm: string, title: string}}
 *     `text` counts on each second; `calm` is the same without the numbers that do, to be read out.
 */
export function verdict(facts, now) {
  const away = facts.providers.filter((each) => ["open", "isolated"].includes(each.breaker.state));
  const shut = facts.providers.filter((each) => each.status === "down");
  if (!facts.providers.length) return said("watch", ["No provider is configured"], "no providers");
  if (shut.length === facts.providers.length) return allDown(facts, now);
  if (away.length) return someAway(facts, away, now);
  if (facts.losing > 0) return losing(facts);
  const tried = facts.providers.find((each) => each.breaker.state === "half_open" && !spared(facts, each));
  if (tried) return onTrial(facts, tried);
  return upright(facts, now);
}

/** A fallback that waits for a call to prove itself, while those before it take them all, is no news. */
const spared = (facts, provider) =>
  provider.breaker.state === "half_open" &&
  facts.providers.some((each) => each.position < provider.position && each.status === "healthy");

function allDown(facts, now) {
  const outages = facts.providers.map((each) => outageOf(facts, each)).filter(Boolean);
  const began = Math.max(...outages.map((each) => each.time), 0);
  const reasons = facts.providers.map((each) => `${subject(each)} (${reasonOf(each)})`);
  const lost = Math.max(0, ...facts.providers.map((each) => sum(facts, each, "lost_calls")));
  const next = soonest(facts.providers);
  return said(
    "down",
    [
      `No provider answers${began ? ` since ${since(began, now)}` : ""}: ${listed(reasons)}`,
      lost ? [`${counted(lost, "call")} lost`] : "",
      next ? [trial(next, now, true)] : "",
    ],
    "no provider answers",
  );
}

function someAway(facts, away, now) {
  const [first] = away;
  const began = outageOf(facts, first)?.time ?? first.breaker.since;
  const others = away.slice(1).map((each) => each.name);
  const isolated = first.breaker.state === "isolated";
  const verb = isolated ? "is taken out" : "is resting";
  const when = began ? ` since ${since(began, now)}` : "";
  const rescued = Math.max(...away.map((each) => sum(facts, each, "rescued_calls")));
  const lost = Math.max(...away.map((each) => sum(facts, each, "lost_calls")));
  const fallbackOnly = first.position > 1;
  const text = [
    `${subject(first)}${fallbackOnly ? ", a fallback," : ""} ${verb}${when} (${reasonOf(first)})`,
    others.length ? `so ${others.length > 1 ? "are" : "is"} ${listed(others)}` : "",
    serving(facts),
    rescued ? [`${counted(rescued, "call")} rescued`] : "",
    lost ? [`${lost} lost`] : "",
    isolated ? (first.breaker.until ? `until ${since(first.breaker.until, now)}` : "") : [trial(first, now)],
  ];
  return said(fallbackOnly ? "watch" : "coping", text, `${first.name} ${isolated ? "is taken out" : "rests"}`);
}

function losing(facts) {
  return said("down", ["Calls are being lost", serving(facts), "every breaker is closed"], "calls are lost");
}

function onTrial(facts, provider) {
  return said(
    "watch",
    [`${subject(provider)} is being tried again: the next good answer brings it back`, serving(facts)],
    `${provider.name} on trial`,
  );
}

function upright(facts, now) {
  const uneasy = facts.providers.find((each) => each.status !== "healthy" && !spared(facts, each));
  if (uneasy) {
    return said("watch", [`${uneasy.name} is not quite well: ${complaint(uneasy)}`, serving(facts)], `${uneasy.name} is uneasy`);
  }
  return recovered(facts, now) ?? said("well", ["All is well", serving(facts), history(facts)], "all is well");
}

/** Tell of the outage that ended within the last ten minutes; of several, the one that touched most calls. */
function recovered(facts, now) {
  const back = facts.incidents.filter((each) => each.type === "provider_recovered" && now - each.time < 600_000);
  const [told] = [...new Set(back.map((each) => each.provider))]
    .map((name) => outcome(name, back.filter((each) => each.provider === name)))
    .sort((one, two) => two.affected - one.affected);
  if (!told) return null;
  const { rescued, lost } = told;
  const fate = rescued || lost ? `${counted(rescued, "call")} rescued, ${lost ? amount(lost) : "none"} lost` : "no call was hurt";
  return said("well", [`${told.name} is back since ${since(told.time, now)}, after ${coarse(told.seconds)}`, fate, serving(facts)], "all is well again");
}

/** Add up what ended together: a provider and its models have breakers of their own. */
function outcome(name, incidents) {
  const last = incidents[0].time;
  const together = incidents.filter((each) => last - each.time < 60_000);
  const total = (field) => together.reduce((sum, each) => sum + (each.details[field] ?? 0), 0);
  return {
    name, time: last, seconds: Math.max(...together.map((each) => each.details.outage_seconds ?? 0)),
    affected: total("affected_calls"), rescued: total("rescued_calls"), lost: total("lost_calls"),
  };
}
function history(facts) {
  const totals = facts.totals;
  if (!totals?.total_requests) return "";
  const lost = totals.total_failures ? `${amount(totals.total_failures)} lost` : "none lost";
  return [`${counted(totals.total_requests, "call")} since the start, ${lost}`];
}

/** Say who answers: measured where there were calls lately, else who would. */
function serving(facts) {
  const served = facts.served.filter((each) => each.share >= 0.005);
  if (served.length === 1) return `${served[0].name} serves everything`;
  if (served.length > 1) return [served.map((each) => `${each.name} serves ${Math.round(each.share * 100)} %`).join(", ")];
  const next = facts.providers.find((each) => each.status !== "down");
  return next ? `${next.name} takes the next call` : "";
}

export function complaint(provider) {
  if (provider.missing.length) return `it lacks ${listed(provider.missing)}`;
  const probe = provider.probe;
  if (probe && !probe.ok) return `its last probe ${probe.verdict === "failed" ? "failed" : "was unclear"}: ${probe.what}`;
  return "it asked for fewer calls, or has just come back";
}

const reasonOf = (provider) =>
  provider.breaker.state === "isolated" ? provider.breaker.reason : cause(provider.breaker.reason);

/** Say when a resting provider is tried again. */
export function trial({ name, breaker }, now, named = false) {
  const left = (breaker.until - now) / 1000;
  if (left <= 0.5) return `the next call is ${named ? `a trial of ${name}` : "its trial"}`;
  return `next trial${named ? `, of ${name},` : ""} in ${coarse(Math.ceil(left))}`;
}

const soonest = (providers) =>
  providers.filter((each) => each.breaker.until).sort((one, two) => one.breaker.until - two.breaker.until)[0];

const ongoing = (facts, provider) =>
  facts.incidents.filter(
    (each) =>
      each.resolved === null &&
      each.provider === provider.name &&
      ["outage_detected", "breaker_isolated"].includes(each.type),
  );

/** The incident that keeps a provider away; the oldest, for a relapse begins no new one. */
export const outageOf = (facts, provider) => ongoing(facts, provider).at(-1);

const sum = (facts, provider, field) =>
  ongoing(facts, provider).reduce((total, each) => total + (each.details[field] ?? 0), 0);

/** Join parts into a sentence; parts in brackets change all the time and are not read out. */
function said(level, parts, title) {
  const full = parts.flat().filter(Boolean);
  const steady = parts.filter((each) => each && !Array.isArray(each));
  return { level, text: `${full.join("; ")}.`, calm: `${steady.join("; ")}.`, title };
}

/** Say what a frame of the live feed tells, in one line. */
export function event(frame) {
  const { payload } = frame;
  switch (frame.event_type) {
    case "incident":
      return payload.message;
    case "provider_status": {
      const { state, reason, model } = payload.circuit_breaker;
      const why = reason && state !== "closed" ? ` (${reason})` : "";
      return `${payload.provider} is ${payload.status}; breaker${model ? ` of ${model}` : ""} ${STATES[state]}${why}`;
    }
    case "metrics":
      return `${counted(payload.total_requests, "call")}, ${amount(payload.total_failures)} lost, ${amount(payload.in_flight)} in flight`;
    case "system":
      return payload.details?.provider ? `${payload.details.provider}: ${payload.message}` : payload.message;
    default:
      return frame.event_type;
  }
}
