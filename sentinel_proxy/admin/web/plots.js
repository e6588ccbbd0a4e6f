/*
 * The four plots: SVG, drawn by hand, sharing one axis of time. The pointer, or the arrow keys where a
 * plot has the focus, read off one moment in all of them.
 */

import { h, s, say } from "./dom.js";
import { amount, clock, coarse } from "./words.js";

export const WINDOW_SECONDS = 600;

/** Shown at first: a page that was just opened knows little, and little in a wide frame is nothing. */
const LEAST_WINDOW_SECONDS = 60;

const HEIGHT = 132;
const PAD = { top: 8, right: 2, bottom: 18, left: 44 };

/** Two points further apart than this are not joined: nobody looked in between. */
const GAP_MS = 45_000;

const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${amount(value)} s`);

const answered = (providers) => [
  { label: "before this page", kind: "earlier", value: (point) => point.answered[""] ?? 0 },
  ...providers.map(({ name, position }) => ({
    label: name,
    kind: `hue-${Math.min(position, 6)}`,
    value: (point) => point.answered[name] ?? 0,
  })),
  { label: "lost", kind: "lost", value: (point) => point.lost },
];

const quantile = (which) => [
  { label: "half within", kind: "half", value: (point) => point[which]?.half ?? null },
  { label: "95 of 100 within", kind: "most", value: (point) => point[which]?.most ?? null },
];

const PLOTS = [
  { title: "Calls", unit: "a second, by who answered", stacked: true, write: amount, layers: answered, least: 1 },
  { title: "Tokens", unit: "a second", stacked: true, write: amount, least: 10,
    layers: () => [{ label: "tokens", kind: "tokens", value: (point) => point.tokens }] },
  { title: "Whole answer", unit: "from request to end", write: seconds, layers: () => quantile("whole"), least: 0.1 },
  { title: "First token", unit: "of streams, from request", write: seconds, layers: () => quantile("first"), least: 0.1 },
];

/** All plots of the page, below *root*. */
export class Plots {
  constructor(root) {
    this._plots = PLOTS.map((settings) => new Plot(settings, (time) => this._read(time)));
    root.replaceChildren(...this._plots.map((plot) => plot.element));
    new ResizeObserver(() => this._plots.forEach((plot) => plot.draw())).observe(root);
  }

  /** Show *points*, and the outages of *bands* behind them. */
  update(points, providers, bands, now) {
    for (const plot of this._plots) plot.update(points, providers, bands, now);
  }

  _read(time) {
    for (const plot of this._plots) plot.read(time);
  }
}

class Plot {
  constructor(settings, onRead) {
    this._settings = settings;
    this._onRead = onRead;
    this._cursor = null;
    this._points = [];
    this._layers = [];
    this._value = h("strong");
    this._legend = h("ul", { class: "legend" });
    this._svg = s("svg", { role: "img", tabindex: "0", height: HEIGHT, "aria-label": `${settings.title}: nothing is known yet`,
      onpointermove: (event) => this._point(event.offsetX), onpointerleave: () => onRead(null),
      onkeydown: (event) => this._key(event), onblur: () => onRead(null) });
    this.element = h("figure", { class: "plot" },
      h("figcaption", {}, h("h3", {}, settings.title), h("span", { class: "quiet" }, settings.unit), this._value),
      this._svg, this._legend);
  }

  update(points, providers, bands, now) {
    this._bands = bands;
    this._now = now;
    this._points = points.filter((point) => now - point.time < WINDOW_SECONDS * 1000);
    const known = (now - (points[0]?.time ?? now)) / 1000;
    this._window = Math.min(WINDOW_SECONDS, Math.max(LEAST_WINDOW_SECONDS, known));
    this._layers = this._settings.layers(providers)
      .filter(({ kind, value }) => kind !== "earlier" || this._points.some((point) => value(point) > 0));
    this.draw();
  }

  /** Read off the moment *time*; null: the present. */
  read(time) {
    this._cursor = time;
    this.draw();
  }

  draw() {
    const width = this._svg.clientWidth;
    if (!width || !this._now) return;
    this._width = width;
    const top = nice(Math.max(this._settings.least, ...this._points.map((point) => this._height(point))));
    const x = (time) => width - PAD.right - ((this._now - time) / 1000 / this._window) * (width - PAD.left - PAD.right);
    const y = (value) => HEIGHT - PAD.bottom - (value / top) * (HEIGHT - PAD.top - PAD.bottom);
    this._svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this._svg.replaceChildren(
      ...this._bandsAt(x), ...this._grid(x, y, top, width),
      ...(this._settings.stacked ? this._areas(x, y) : this._lines(x, y)), ...this._cursorAt(x, y));
    this._tell();
  }

  _height(point) {
    const values = this._layers.map(({ value }) => value(point) ?? 0);
    return this._settings.stacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(0, ...values);
  }

  _bandsAt(x) {
    return this._bands.map(({ from, to, kind }) => {
      const [left, right] = [Math.max(PAD.left, x(from)), x(to)];
      return s("rect", { class: `band ${kind}`, x: left, y: PAD.top, width: Math.max(0, right - left), height: HEIGHT - PAD.top - PAD.bottom });
    });
  }

  _grid(x, y, top, width) {
    const lines = [0, top / 2, top].flatMap((value) => [
      s("line", { class: value ? "grid" : "axis", x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: PAD.left - 5, y: y(value) + 3.5, "text-anchor": "end" }, this._settings.write(value)),
    ]);
    const step = this._window > 360 ? 120 : this._window > 150 ? 60 : this._window > 75 ? 30 : 15;
    const agos = [1, 2, 3, 4, 5].map((each) => each * step).filter((ago) => x(this._now - ago * 1000) > PAD.left + 12);
    const times = agos.map((ago) => s("text", { class: "tick", x: x(this._now - ago * 1000), y: HEIGHT - 4, "text-anchor": "middle" }, ago % 60 ? `−${ago} s` : `−${ago / 60} min`));
    return [...lines, ...times, s("text", { class: "tick", x: width - PAD.right, y: HEIGHT - 4, "text-anchor": "end" }, "now")];
  }

  _runs() {
    const runs = [];
    this._points.forEach((point, i) => {
      if (!i || point.time - this._points[i - 1].time > GAP_MS) runs.push([]);
      runs.at(-1).push(point);
    });
    return runs;
  }

  _areas(x, y) {
    return this._runs().flatMap((run) => {
      const floor = run.map(() => 0);
      return this._layers.flatMap(({ kind, value }) => {
        const base = [...floor];
        run.forEach((point, i) => (floor[i] += value(point)));
        if (!run.some((point) => value(point) > 0)) return [];
        const above = run.map((point, i) => at(x(point.time), y(floor[i])));
        const below = run.map((point, i) => at(x(point.time), y(base[i]))).reverse();
        const d = `M${[...above, ...below].join("L")}Z`;
        const edge = stroke(run, above, (point) => value(point) > 0);
        return [s("path", { class: `area ${kind}`, d }), s("path", { class: `pattern ${kind}`, d }), s("path", { class: `line ${kind}`, d: edge })];
      });
    });
  }

  _lines(x, y) {
    return this._runs().flatMap((run) =>
      this._layers.map(({ kind, value }) => {
        const places = run.map((point) => at(x(point.time), y(value(point) ?? 0)));
        return s("path", { class: `line ${kind}`, d: stroke(run, places, (point) => value(point) !== null) });
      }));
  }

  _cursorAt(x, y) {
    const point = this._cursor && this._shown();
    if (!point) return [];
    const dots = this._settings.stacked ? [] : this._layers
      .filter(({ value }) => value(point) !== null)
      .map(({ kind, value }) => s("circle", { class: `dot ${kind}`, cx: x(point.time), cy: y(value(point)), r: 3 }));
    return [s("line", { class: "cursor", x1: x(point.time), x2: x(point.time), y1: PAD.top, y2: HEIGHT - PAD.bottom }), ...dots];
  }

  /** The point that is read off: the last, unless somebody points at another. */
  _shown() {
    if (this._cursor === null) {
      const last = this._points.at(-1);
      return last && this._now - last.time < GAP_MS ? last : null;
    }
    return this._points.reduce((best, point) =>
      best && Math.abs(best.time - this._cursor) <= Math.abs(point.time - this._cursor) ? best : point, null);
  }

  _tell() {
    const { title, unit, stacked, write } = this._settings;
    const point = this._shown();
    const values = this._layers.map((layer) => ({ ...layer, now: point ? layer.value(point) : null }));
    const main = point && (stacked ? this._height(point) : values[0].now);
    const when = this._cursor !== null && point ? ` at ${clock(point.time, true)}` : "";
    say(this._value, main === null || main === undefined ? "–" : `${write(main)}${when}`);
    const parts = values.length > 1 ? values : [];
    this._legend.replaceChildren(...parts.map(({ label, kind, now }) =>
      h("li", { class: kind }, s("svg", { viewBox: "0 0 12 12", class: "swatch", "aria-hidden": "true" },
        s("rect", { class: `area ${kind}`, width: 12, height: 12 }), s("rect", { class: `pattern ${kind}`, width: 12, height: 12 })),
      `${label} `, h("b", {}, now === null ? "–" : write(now)))));
    const spoken = values.map(({ label, now }) => `${label} ${now === null ? "unknown" : write(now)}`).join(", ");
    this._svg.setAttribute("aria-label", `${title} ${unit}${when || ", now"}: ${spoken}. The last ${coarse(this._window)}; arrow keys read off a moment.`);
  }

  _point(offset) {
    const share = (this._width - PAD.right - offset) / (this._width - PAD.left - PAD.right);
    this._onRead(this._now - share * this._window * 1000);
  }

  _key(event) {
    const step = { ArrowLeft: -10_000, ArrowRight: 10_000, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this._onRead(null);
    if (step === undefined || !this._points.length) return;
    event.preventDefault();
    const [first, last] = [this._points[0].time, this._points.at(-1).time];
    this._onRead(Math.min(last, Math.max(first, (this._cursor ?? last) + step)));
  }
}

/** Draw through *places*, with the pen up where there is nothing to draw. */
function stroke(run, places, isThere) {
  let pen = "M";
  return run.map((point, i) => {
    const step = isThere(point) ? `${pen}${places[i]}` : "";
    pen = step ? "L" : "M";
    return step;
  }).join("");
}

const at = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** The next round number: 1, 2, 4, 5 or 10 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].find((step) => step * power >= value * 0.999) * power;
}
