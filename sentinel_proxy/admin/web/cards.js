/* The providers as cards, in the order in which they are tried. A card is made once and then changed. */

import { h, keyed, s, say, sign } from "./dom.js";
import { STATES, amount, cause, clock, coarse, complaint, duration, listed, outageOf, since, trial } from "./words.js";

const LEVELS = { healthy: "well", degraded: "watch", down: "down" };
const CIRCLE = 2 * Math.PI * 26;

/**
 * Show the chain.
 *
 * @param {Element} root
 * @param {object} facts As for `words.verdict`.
 * @param {object} orders What the buttons do: `probe(name)`, `isolate(name)`, `reset(name)`.
 */
export function show(root, facts, now, orders) {
  keyed(root, facts.providers, (each) => `${each.position} ${each.name}`, (each) => make(each, orders), (card, each) => update(card.parts, each, facts, now));
}

function make({ name, position, kind }, orders) {
  const parts = {
    status: h("span", { class: "status" }),
    role: h("p", { class: "role" }),
    share: h("span"),
    ring: s("circle", { class: "left", cx: 30, cy: 30, r: 26, "stroke-dasharray": CIRCLE, transform: "rotate(-90 30 30)" }),
    count: h("b"),
    unit: h("small"),
    state: h("h4"),
    why: h("p"),
    facts: h("dl", { class: "facts" }),
    notes: h("ul", { class: "notes" }),
    reset: h("button", { type: "button", onclick: () => orders.reset(name) }, "Reset…"),
  };
  parts.dial = h("div", { class: "dial", "aria-hidden": "true" },
    s("svg", { viewBox: "0 0 60 60" }, s("circle", { class: "whole", cx: 30, cy: 30, r: 26 }), parts.ring), h("span", {}, parts.count, parts.unit));
  const order = (label, action) => h("button", { type: "button", "aria-label": `${label} ${name}`, onclick: () => action(name) }, label);
  const heading = `provider-${position}`;
  const card = h("li", { class: `card hue-${Math.min(position, 6)}`, "aria-labelledby": heading },
    h("header", {}, h("span", { class: "position", "aria-hidden": "true" }, String(position)),
      h("h3", { id: heading }, h("span", { class: "unseen" }, `${position}: `), name), kind === name ? null : h("span", { class: "quiet" }, kind), parts.status),
    parts.role, h("div", { class: "share", "aria-hidden": "true" }, parts.share),
    h("div", { class: "breaker" }, parts.dial, h("div", {}, parts.state, parts.why)),
    parts.facts, parts.notes,
    h("footer", {}, order("Probe now", orders.probe), order("Isolate…", orders.isolate), parts.reset));
  parts.reset.setAttribute("aria-label", `Reset ${name}`);
  card.parts = parts;
  parts.card = card;
  return card;
}

function update(parts, provider, facts, now) {
  const level = LEVELS[provider.status];
  parts.card.dataset.level = level;
  if (parts.status.dataset.level !== provider.status) {
    parts.status.dataset.level = provider.status;
    parts.status.replaceChildren(sign(level), provider.status);
  }
  const served = facts.served.find((each) => each.name === provider.name);
  say(parts.role, role(provider, served, facts));
  parts.card.classList.toggle("serving", Boolean(served?.share >= 0.005));
  parts.share.style.width = `${Math.round((served?.share ?? 0) * 100)}%`;
  breaker(parts, provider, facts, now);
  describe(parts.facts, rows(provider, now));
  const notes = [...others(provider, now), ...warnings(provider)];
  keyed(parts.notes, notes, (text) => text, (text) => h("li", {}, text), () => {});
  parts.reset.disabled = provider.breaker.state === "closed" && !notes.length;
}

function role({ position, status, breaker }, served, facts) {
  if (served?.share >= 0.005) return `serves ${amount(served.rate)} calls a second, ${Math.round(served.share * 100)} % of them`;
  if (breaker.state === "half_open") return "the next call there decides";
  if (status === "down") return "calls pass it by";
  const before = facts.providers.filter((each) => each.position < position && each.status !== "down");
  return before.length ? `stands by, after ${listed(before.map((each) => each.name))}` : "takes the next call";
}

function breaker(parts, provider, facts, now) {
  const { state, since: from, until, reason, model, failures } = provider.breaker;
  const began = outageOf(facts, provider)?.time ?? from;
  const resting = state === "open" || state === "isolated";
  parts.dial.hidden = !resting;
  say(parts.state, `Breaker ${STATES[state]}${model ? ` for ${model}` : ""}`);
  if (!resting) {
    const run = failures ? `${failures} ${failures === 1 ? "failure" : "failures"} in a row` : "no failures";
    say(parts.why, state === "half_open" ? `Since ${clock(from, true)}; one call may try it` : from ? `Since ${since(from, now)}, ${run}` : capital(run));
    return;
  }
  const left = Math.max(0, (until - now) / 1000);
  const whole = Math.max(1, (until - from) / 1000);
  parts.ring.setAttribute("stroke-dashoffset", CIRCLE * (1 - Math.min(1, left / whole)));
  const [number, unit] = left > 0.5 ? coarse(Math.ceil(left)).split(" ") : ["now", ""];
  say(parts.count, number);
  say(parts.unit, unit);
  const next = state === "isolated" ? `Ends ${until ? since(until, now) : "by order"}` : capital(trial(provider, now));
  say(parts.why, `Since ${since(began, now)}: ${state === "isolated" ? reason : cause(reason)}. ${next}`);
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function rows({ success, latency, inFlight, probe }, now) {
  return [
    ["Good answers, 5 min", success === null ? "no calls" : `${amount(success)} %`],
    ["Begins to answer after", latency === null ? "–" : duration(latency / 1000)],
    ["In flight", amount(inFlight)],
    ["Last probe", probe ? `${probe.ok ? "passed" : probe.verdict} ${ago(probe.time, now)}` : "none yet"],
  ];
}

const ago = (time, now) => {
  const seconds = (now - time) / 1000;
  return seconds < 5 ? "just now" : `${coarse(seconds < 60 ? Math.floor(seconds / 5) * 5 : seconds)} ago`;
};

function describe(list, wanted) {
  keyed(list, wanted, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd")), (row, [, value]) => say(row.lastChild, value));
}

/** Breakers of models other than the one that is shown large. */
function others({ models, breaker }, now) {
  return Object.entries(models)
    .filter(([name, each]) => each.state !== "closed" && name !== breaker.model)
    .map(([name, each]) => `${name}: ${STATES[each.state]}, ${cause(each.reason)}${each.until ? `, until ${clock(Date.parse(each.until), true)}` : ""}`);
}

function warnings(provider) {
  const uneasy = provider.missing.length || (provider.probe && !provider.probe.ok);
  return uneasy && provider.status !== "healthy" ? [complaint(provider)] : [];
}
