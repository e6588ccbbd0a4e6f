/* The incident timeline: a lane for each provider and one for callers; what lasted is a bar, what happened a mark. */

import { h, s } from "./dom.js";
import { clock, coarse, since } from "./words.js";

export const SPANS = { "5 min": 300, "15 min": 900, "1 h": 3600, "6 h": 21_600, "24 h": 86_400 };

const LANE = 30;
const BAR = 16;
const FOOT = 20;
const FRESH_MS = 5000;

const BARS = { outage_detected: "outage", breaker_isolated: "isolated", no_provider_answered: "lost", failover_triggered: "failover" };
const MARKS = {
  provider_recovered: { kind: "back", d: "M0 -6 6 5H-6Z" },
  stream_rescued: { kind: "saved", d: "M0 -6 6 0 0 6 -6 0Z" },
  stream_truncated: { kind: "cut", d: "M-5 -5 5 5M5 -5-5 5" },
};
const ALARM = { kind: "alarm", d: "M-1.8 -6h3.6L1 1.6h-2ZM-1.6 3.4h3.2v2.6h-3.2Z" };
const ABSENCES = new Set(["outage_detected", "breaker_isolated"]);
const OF_CALLERS = new Set(["no_provider_answered", "stream_truncated"]);

/**
 * Say when *incident* ended, or to when it has lasted. An outage goes on until a breaker closes, but it
 * is over for callers once the breaker is half-open: whoever comes next is let through.
 */
function endOf(incident, facts, now) {
  if (incident.resolved !== null) return incident.resolved;
  if (incident.details.state !== "half_open") return now;
  return facts.providers.find((each) => each.name === incident.provider)?.breaker.since ?? now;
}

/** Every time without a provider as `{provider, from, to, kind, …}`, once however many breakers told it. */
export function bands(facts, now) {
  const found = [];
  for (const incident of [...facts.incidents].reverse()) {
    if (!ABSENCES.has(incident.type)) continue;
    const { provider, time: from, message } = incident;
    const band = { provider, from, to: endOf(incident, facts, now), kind: BARS[incident.type], message, lasts: incident.resolved === null };
    const last = found.findLast((each) => each.provider === provider && each.kind === band.kind);
    if (last && from <= last.to) Object.assign(last, { to: Math.max(last.to, band.to), lasts: last.lasts || band.lasts });
    else found.push(band);
  }
  return found;
}

/**
 * Draw the timeline.
 *
 * @param {SVGElement} svg
 * @param {object} facts As for `words.verdict`; `started` is when the proxy was.
 * @param {number} span Seconds to show.
 */
export function draw(svg, facts, span, now) {
  const width = svg.clientWidth;
  if (!width) return;
  const names = [...facts.providers.map((each) => each.name), null];
  const left = Math.min(120, Math.max(70, width * 0.12));
  const bottom = names.length * LANE;
  const x = (time) => left + (1 - (now - time) / 1000 / span) * (width - left - 4);
  const view = { facts, now, bands: bands(facts, now), from: now - span * 1000, left, right: width - 4, x };
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + FOOT}`);
  svg.setAttribute("height", bottom + FOOT);
  svg.setAttribute("aria-label", summary(facts, span, now));
  svg.replaceChildren(...axis(view, span, bottom), ...names.flatMap((name, i) => lane(view, name, i)));
}

function axis({ now, left, right, x }, span, bottom) {
  const step = [60, 180, 300, 600, 900, 3600, 7200, 14_400].find((each) => span / each <= (right - left) / 90) ?? 21_600;
  const first = Math.ceil((now / 1000 - span) / step) * step;
  const ticks = [];
  for (let time = first; time < now / 1000; time += step) {
    const place = x(time * 1000);
    ticks.push(s("line", { class: "grid", x1: place, x2: place, y1: 0, y2: bottom }));
    if (place > left + 16 && place < right - 40) ticks.push(s("text", { class: "tick", x: place, y: bottom + 14, "text-anchor": "middle" }, clock(time * 1000)));
  }
  return [...ticks, s("text", { class: "tick", x: right, y: bottom + 14, "text-anchor": "end" }, "now")];
}

function lane(view, name, row) {
  const { facts, left, right, x } = view;
  const middle = row * LANE + LANE / 2;
  const provider = facts.providers[row];
  const started = Math.min(right, Math.max(left, x(facts.started)));
  const label = provider
    ? [s("text", { class: `number hue-${Math.min(provider.position, 6)}`, x: 0, y: middle + 4 }, String(provider.position)),
       s("text", { class: "lane", x: 16, y: middle + 4 }, short(name, (left - 22) / 7.2))]
    : [s("text", { class: "lane", x: 16, y: middle + 4 }, "callers")];
  const shown = facts.incidents.filter((each) => (each.resolved ?? view.now) >= view.from && belongs(each, name));
  const bars = [
    ...shown.filter((each) => BARS[each.type] && !ABSENCES.has(each.type)).map((each) => bandOf(each, view.now)),
    ...view.bands.filter((each) => each.provider === name && each.to >= view.from),
  ];
  return [
    ...label,
    s("line", { class: "unknown", x1: left, x2: started, y1: middle, y2: middle }),
    s("line", { class: provider ? "up" : "quiet", x1: started, x2: right, y1: middle, y2: middle }),
    ...bars.map((each) => bar(view, each, middle)),
    ...shown.filter((each) => !BARS[each.type]).map((each) => mark(view, each, middle)),
  ];
}

const belongs = (incident, name) => (name === null ? OF_CALLERS.has(incident.type) : incident.provider === name && !OF_CALLERS.has(incident.type));

/** What happens again and again has lasted until it was last heard of. */
const bandOf = ({ type, time, resolved, seen, message }, now) => ({
  from: time, to: resolved ?? (now - seen < FRESH_MS ? now : seen), kind: BARS[type], message, lasts: false,
});

function bar({ now, left, right, x }, { from, to, kind, message, lasts }, middle) {
  const thin = kind === "failover";
  const start = Math.max(left, x(from));
  const wide = Math.max(3, Math.min(right, x(to)) - start);
  const lasted = coarse((to - from) / 1000);
  const [top, tall] = thin ? [middle + BAR / 2 + 1, 3] : [middle - BAR / 2, BAR];
  const box = { x: start, y: top, width: wide, height: tall, rx: 2 };
  return s("g", { class: `bar ${kind}${to === now ? " ongoing" : ""}` },
    s("title", {}, `${clock(from, true)}, ${lasted}: ${message}`),
    lasts && to < now ? s("line", { class: "trial", x1: start + wide, x2: right, y1: middle, y2: middle }) : null,
    s("rect", { class: "fill", ...box }), s("rect", { class: "weave", ...box }),
    !thin && wide > 58 ? s("text", { class: "inside", x: start + 6, y: middle + 4 }, lasted) : null);
}

function mark({ left, x }, incident, middle) {
  const { kind, d } = MARKS[incident.type] ?? ALARM;
  const place = Math.max(left, x(incident.resolved ?? incident.time));
  return s("g", { class: `mark ${kind}`, transform: `translate(${place} ${middle})` },
    s("title", {}, `${clock(incident.time, true)}: ${incident.message}`), s("path", { d }));
}

const short = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, Math.floor(most) - 1))}…` : text);

function summary(facts, span, now) {
  const recent = facts.incidents.filter((each) => now - (each.resolved ?? now) < span * 1000 && BARS[each.type]);
  const told = recent.map((each) => `${since(each.time, now)}: ${each.message}`);
  return `Incidents of the last ${coarse(span)}. ${told.length ? told.join(". ") : "None"}. The list below has all of them.`;
}

/** The key to bars and marks. */
export function key() {
  const entry = (text, shape) => h("li", {}, s("svg", { viewBox: "-8 -8 16 16", class: "swatch", "aria-hidden": "true" }, shape), text);
  const box = (kind) => s("g", { class: `bar ${kind}` }, s("rect", { class: "fill", x: -8, y: -6, width: 16, height: 12, rx: 2 }), s("rect", { class: "weave", x: -8, y: -6, width: 16, height: 12, rx: 2 }));
  const sign = ({ kind, d }) => s("g", { class: `mark ${kind}` }, s("path", { d }));
  return h("ul", { class: "legend" },
    entry("outage", box("outage")), entry("taken out by an operator", box("isolated")),
    entry("failover", s("g", { class: "bar failover" }, s("rect", { class: "fill", x: -8, y: -2, width: 16, height: 4 }))),
    entry("calls lost", box("lost")), entry("recovered", sign(MARKS.provider_recovered)),
    entry("stream rescued", sign(MARKS.stream_rescued)), entry("stream truncated", sign(MARKS.stream_truncated)),
    entry("key, quota, model or rate", sign(ALARM)));
}
