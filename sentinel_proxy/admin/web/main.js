/*
 * The page: what is known, and when it is drawn. Everything else is elsewhere: `feed` talks to the
 * proxy, `series` counts, `words` says it, `cards`, `plots`, `timeline` and `lists` show it.
 */

import * as cards from "./cards.js";
import { Dialogs } from "./dialogs.js";
import { byId, h, say, sign } from "./dom.js";
import { Feed, Refused, ask, token } from "./feed.js";
import { Events, incidents as showIncidents } from "./lists.js";
import { Plots, WINDOW_SECONDS } from "./plots.js";
import { History, read } from "./series.js";
import * as timeline from "./timeline.js";
import { alone, amount, clock, coarse, counted, duration, verdict } from "./words.js";

const LIVE_ANNOUNCE_MS = 800;
const USUAL_SPAN_MS = 780_000;

const facts = { providers: [], incidents: [], served: [], losing: 0, saved: null, totals: null, state: null, started: Date.now(), known: false };
const history = new History(WINDOW_SECONDS);
const plots = new Plots(byId("plots"));
const events = new Events(byId("events"), byId("event-filters"));
const dialogs = new Dialogs();
const link = { live: false, since: null, retryAt: null, refusal: null, draining: false };
const view = { span: 900, announced: "", pending: "", announceAt: 0 };

/** How far the proxy's clock is behind ours, at most: whatever it says was true a moment before it came. */
let behind = Infinity;
const now = () => Date.now() - (behind === Infinity ? 0 : behind);
const heardOf = (time) => { behind = Math.min(behind, Date.now() - time); };

// What comes in.

const providerOf = (name, status) => ({
  name, position: status.position, kind: status.kind, status: status.status, routable: status.routable,
  breaker: { ...status.circuit_breaker, since: parsed(status.circuit_breaker.since), until: parsed(status.circuit_breaker.until) },
  models: status.models, missing: status.missing_models, latency: status.latency_ms, success: status.success_rate_pct,
  inFlight: status.in_flight, probe: status.last_probe && { ...status.last_probe, time: parsed(status.last_probe.time) },
});
/** `seen` is when it was last heard to grow: what happens again and again is called over only a minute later. */
function incidentOf(each) {
  const before = facts.incidents.find((known) => known.id === each.id);
  return {
    id: each.id, type: each.type, severity: each.severity, provider: each.provider, message: each.message, details: each.details,
    time: parsed(each.timestamp), resolved: parsed(each.resolved_at), seconds: each.duration_seconds,
    seen: before?.message === each.message ? before.seen : now(),
  };
}
const parsed = (text) => (text === null || text === undefined ? null : Date.parse(text));

function takeStatus(status) {
  facts.providers = Object.entries(status).map(([name, each]) => providerOf(name, each)).sort((one, two) => one.position - two.position);
}

/** The newest page replaces what it covers; older ones that were asked for stay, unless all is begun *anew*. */
function takeIncidents({ incidents, total }, anew = false) {
  const fresh = incidents.map(incidentOf);
  const oldest = anew ? "" : (fresh.at(-1)?.id ?? "");
  facts.incidents = [...fresh, ...facts.incidents.filter((each) => each.id < oldest)];
  byId("older").hidden = facts.incidents.length >= total;
}

function takeIncident(each) {
  const rest = facts.incidents.filter((known) => known.id !== each.id);
  facts.incidents = [incidentOf(each), ...rest].sort((one, two) => (one.id < two.id ? 1 : -1));
}

function takeTotals(totals) {
  facts.totals = totals;
  facts.started = now() - totals.uptime_seconds * 1000;
}

const feed = new Feed({
  snapshot({ events: frames, status, incidents, totals, health }) {
    link.refusal = null;
    link.draining = false;
    facts.known = true;
    takeStatus(status);
    takeIncidents(incidents, true);
    takeTotals(totals);
    facts.state = health.state;
    if (!view.chosen) chooseSpan();
    history.seed(frames.filter((frame) => frame.event_type === "metrics"));
    events.reset(frames);
    say(byId("version"), health.version);
    render();
  },
  asked({ status, totals, series, incidents, health }) {
    if (status) takeStatus(status);
    if (incidents) takeIncidents(incidents);
    takeTotals(totals);
    facts.state = health.state;
    const sums = read(series);
    history.add(now(), sums);
    facts.saved = sums.saved;
    facts.served = history.served();
    facts.losing = history.points.at(-1)?.lost ?? 0;
    render();
  },
  frame(frame) {
    heardOf(Date.parse(frame.timestamp));
    events.add(frame);
    if (frame.event_type === "provider_status") {
      const known = Object.fromEntries(facts.providers.map((each) => [each.name, each]));
      known[frame.payload.provider] = providerOf(frame.payload.provider, frame.payload);
      facts.providers = Object.values(known).sort((one, two) => one.position - two.position);
    } else if (frame.event_type === "incident") takeIncident(frame.payload);
    else if (frame.event_type === "metrics") takeTotals(frame.payload);
    else if (frame.event_type === "system" && frame.payload.message === "draining") link.draining = true;
    render();
  },
  link({ live, since = null, retryAt = null }) {
    Object.assign(link, { live, retryAt, since: live ? null : (link.since ?? (since || null)) });
    render();
  },
  refused(error) {
    link.live = false;
    link.refusal = error;
    if (error.status === 401) askForToken();
    render();
  },
});

/** Show as much of the past as what still lasts needs. */
function chooseSpan() {
  const usual = Math.max(facts.started, now() - USUAL_SPAN_MS);
  const oldest = Math.min(usual, ...facts.incidents.filter((each) => each.resolved === null).map((each) => each.time));
  const spans = Object.values(timeline.SPANS);
  showSpan(spans.find((span) => (now() - oldest) / 1000 < span * 0.9) ?? spans.at(-1));
}

function showSpan(span) {
  view.span = span;
  for (const chip of byId("spans").children) chip.setAttribute("aria-pressed", String(chip.value === String(span)));
}

async function askForToken() {
  if (await dialogs.token(token.get() ? "The proxy does not accept that token." : "")) feed.now();
}

// What is drawn.

function render() {
  const moment = now();
  renderLink();
  if (!facts.known) return;
  renderState(moment);
  renderTruth(moment);
  renderNumbers();
  cards.show(byId("chain"), facts, moment, orders);
  showIncidents(byId("incidents"), facts, moment);
  byId("no-incidents").hidden = facts.incidents.length > 0;
  timeline.draw(byId("timeline"), facts, view.span, moment);
}

function renderPlots() {
  if (facts.known) plots.update(history.points, facts.providers, timeline.bands(facts, now()), now());
}

function renderTruth(moment) {
  const { level, text, calm, title } = verdict(facts, moment);
  const stale = !link.live;
  const truth = byId("truth");
  if (truth.dataset.level !== level) {
    truth.dataset.level = level;
    byId("truth-sign").replaceChildren(sign(level));
  }
  say(byId("sentence"), stale && link.since ? `As of ${clock(link.since, true)}: ${text}` : text);
  document.title = `${{ well: "✓", watch: "◆", coping: "▲", down: "✕" }[level]} ${title}${stale ? " (stale)" : ""} · Sentinel Proxy`;
  announce(stale ? "" : calm);
}

/** Read out what has changed, once it has held for a moment. */
function announce(text) {
  if (text !== view.pending) Object.assign(view, { pending: text, announceAt: Date.now() + LIVE_ANNOUNCE_MS });
  else if (text && text !== view.announced && Date.now() >= view.announceAt) {
    view.announced = text;
    say(byId("announce"), text);
  }
}

function renderNumbers() {
  const { totals } = facts;
  const last = link.live ? history.points.at(-1) : null;
  number("calls", last ? amount(last.calls) : "–", `${amount(totals.total_requests)} since the start`);
  number("saved", amount(facts.saved), "thanks to a fallback");
  number("lost", amount(totals.total_failures), totals.total_shed ? `and ${amount(totals.total_shed)} refused: too busy` : "got no whole answer");
  number("flight", amount(totals.in_flight), `${amount(totals.open_streams)} of them streams`);
  number("tokens", last ? amount(last.tokens) : "–", `${amount(totals.tokens.total)} since the start`);
  number("own", last?.own ? duration(last.own.half) : "–", "the proxy alone, median");
  byId("lost").classList.toggle("alarm", totals.total_failures > 0);
  const replicas = totals.replicas.length > 1 ? `, one of ${counted(totals.replicas.length, "replica")}` : "";
  say(byId("uptime"), `up ${coarse(totals.uptime_seconds)}${replicas}`);
}

function number(id, value, note) {
  const tile = byId(id);
  say(tile.querySelector("dd"), value);
  say(tile.querySelector(".note"), note);
}

function renderLink() {
  const stale = !link.live;
  document.documentElement.classList.toggle("stale", stale && facts.known);
  say(byId("link"), link.draining ? "draining" : link.live ? "live" : link.refusal ? "refused" : facts.known ? "stale" : "connecting");
  byId("link").dataset.state = link.draining ? "watch" : link.live ? "well" : "down";
  byId("banner").hidden = link.live || (!facts.known && !link.refusal && !link.retryAt);
  say(byId("retry"), link.refusal?.status === 401 ? "Enter the token" : "Try now");
  byId("forget").hidden = !token.get();
  if (stale) say(byId("banner-text"), bannerText());
}

/** Say that the rest of the page is less than usual, for as long as what replicas share is out of reach. */
function renderState(moment) {
  const text = link.live ? alone(facts.state, moment) : "";
  byId("alone").hidden = !text;
  say(byId("alone-text"), text);
}

function bannerText() {
  if (link.refusal) return `The proxy refuses: ${link.refusal.message}.`;
  const left = Math.max(0, Math.ceil((link.retryAt - Date.now()) / 1000));
  const next = link.retryAt && left ? `Trying again in ${left} s.` : "Trying again now.";
  const why = link.draining ? "The proxy is going down." : "No connection to the proxy.";
  return facts.known && link.since ? `${why} What you see is of ${clock(link.since, true)}. ${next}` : `${why} ${next}`;
}

// What is ordered.

const orders = {
  probe: (name) => order(name, "probe", {}, (answer) => `${name}: the probe ${answer.ok ? "passed" : answer.verdict} in ${duration(answer.latency_ms / 1000)}, ${answer.what}`),
  async isolate(name) {
    const body = await dialogs.isolate(name);
    if (body) await order(name, "breaker", { action: "isolate", ...body }, () => `${name} is isolated`);
  },
  async reset(name) {
    const body = await dialogs.reset(name);
    if (body) await order(name, "breaker", { action: "reset", ...body }, () => `${name} is reset: every breaker there is closed`);
  },
};

async function order(name, what, body, done) {
  try {
    const answer = await ask(`api/providers/${encodeURIComponent(name)}/${what}`, { body, timeout: 20_000 });
    toast(done(answer));
  } catch (error) {
    toast(error instanceof Refused ? `Refused: ${error.message}` : "The proxy did not answer; nothing is known of the order.", true);
    if (error instanceof Refused && error.status === 401) askForToken();
  }
}

let toastTimer = null;
function toast(text, bad = false) {
  clearTimeout(toastTimer);
  byId("toast").replaceChildren(h("p", { class: bad ? "bad" : "" }, sign(bad ? "coping" : "well"), text));
  toastTimer = setTimeout(() => byId("toast").replaceChildren(), 8000);
}

// What the reader does.

byId("retry").addEventListener("click", () => (link.refusal?.status === 401 ? askForToken() : feed.now()));
byId("forget").addEventListener("click", () => { token.forget(); location.reload(); });
byId("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : dataset.theme === "dark";
  const theme = isDark ? "light" : "dark";
  dataset.theme = theme;
  localStorage.setItem("sentinel-theme", theme);
});
byId("older").addEventListener("click", async () => {
  const before = facts.incidents.at(-1)?.id ?? "";
  const { incidents, total } = await ask(`api/incidents?limit=50&before=${before}`);
  facts.incidents = [...facts.incidents, ...incidents.map(incidentOf)];
  byId("older").hidden = incidents.length >= total;
  render();
});
byId("spans").append(...Object.entries(timeline.SPANS).map(([label, span]) =>
  h("button", { type: "button", class: "chip", value: span, onclick: () => {
    view.chosen = true;
    showSpan(span);
    render();
  } }, label)));
showSpan(view.span);
byId("timeline-key").append(timeline.key());

setInterval(render, 500);
setInterval(renderPlots, 1000);
feed.now();
