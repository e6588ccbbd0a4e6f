/* The incidents and the live events, newest first. */

import { h, keyed, say, sign } from "./dom.js";
import { clock, coarse, duration, event, since } from "./words.js";

const SIGNS = { info: "info", warning: "watch", error: "coping", critical: "down" };
const KEPT_EVENTS = 200;

/** Show *incidents*; those that last count on. */
export function incidents(root, facts, now) {
  keyed(root, facts.incidents, (each) => each.id, makeIncident, (row, each) => {
    const { parts } = row;
    say(parts.message, each.message);
    row.classList.toggle("ongoing", each.resolved === null);
    say(parts.time, since(each.time, now));
    say(parts.lasted, each.resolved === null ? `for ${coarse((now - each.time) / 1000)}` : each.seconds > 0.05 ? `lasted ${duration(each.seconds)}` : "");
    say(parts.state, each.resolved === null ? "ongoing" : "over");
    const known = Object.entries(each.details).filter(([, value]) => value !== null && `${written(value)}` !== "");
    keyed(parts.details, known, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd")), (entry, [, value]) => say(entry.lastChild, written(value)));
  });
}

function makeIncident({ type, severity, id, time }) {
  const parts = { message: h("span", { class: "message" }), time: h("time", { datetime: new Date(time).toISOString() }), lasted: h("span"), state: h("span", { class: "state" }), details: h("dl", { class: "facts" }) };
  const row = h("li", { class: `incident ${severity}` },
    h("details", {},
      h("summary", {}, sign(SIGNS[severity]), h("span", { class: "severity" }, severity), parts.message,
        h("span", { class: "meta" }, parts.time, parts.lasted, parts.state)),
      h("div", { class: "inside" }, parts.details, h("p", { class: "quiet" }, `${type.replaceAll("_", " ")}, ${id}`))));
  row.parts = parts;
  return row;
}

function written(value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, each]) => `${name}: ${each}`).join(", ");
  return typeof value === "number" && !Number.isInteger(value) ? value.toFixed(1) : String(value);
}

/** The live events: kept here, filtered by type. */
export class Events {
  /** @param {Element} root @param {Element} filters */
  constructor(root, filters) {
    this._root = root;
    this._frames = [];
    this._wanted = new Set(["incident", "provider_status", "system"]);
    filters.append(...["incident", "provider_status", "system", "metrics"].map((type) => this._filter(type)));
  }

  /** Begin anew with *frames*, oldest first. */
  reset(frames) {
    this._frames = [];
    for (const frame of frames) this._take(frame);
    this._show();
  }

  /** Add one that has just come. */
  add(frame) {
    if (frame.event_type === "heartbeat" || this._frames.some((each) => each.id === frame.id)) return;
    this._take(frame);
    this._show();
  }

  /** Of the numbers that an incident is told with again and again, the last are enough. */
  _take(frame) {
    if (isMoment(frame) && frame.payload.change === "resolved") return; // it was told when it happened
    const same = (each) => isUpdate(each) && each.payload.id === frame.payload.id;
    const others = isUpdate(frame) ? this._frames.filter((each) => !same(each)) : this._frames;
    this._frames = [frame, ...others].slice(0, KEPT_EVENTS);
  }

  _filter(type) {
    const button = h("button", { type: "button", class: "chip", "aria-pressed": String(this._wanted.has(type)), onclick: () => {
      if (!this._wanted.delete(type)) this._wanted.add(type);
      button.setAttribute("aria-pressed", String(this._wanted.has(type)));
      this._show();
    } }, type.replace("_", " "));
    return button;
  }

  _show() {
    const shown = this._frames.filter((frame) => this._wanted.has(frame.event_type));
    keyed(this._root, shown, (frame) => frame.id, makeEvent, () => {});
  }
}

const isUpdate = (frame) => frame.event_type === "incident" && frame.payload.change === "updated";

const isMoment = (frame) => frame.payload.type === "provider_recovered";

function makeEvent(frame) {
  const tag = tagOf(frame);
  const tone = tag === "opened" ? frame.payload.severity : tag;
  return h("li", { class: "event" },
    h("time", { datetime: frame.timestamp }, clock(Date.parse(frame.timestamp), true)), h("span", { class: `tag tag-${tone}` }, tag), h("span", {}, event(frame)));
}

function tagOf({ event_type: type, payload }) {
  if (type === "incident") return payload.type === "provider_recovered" ? "recovered" : payload.change;
  return type === "system" ? payload.level : type.replace("provider_", "");
}
