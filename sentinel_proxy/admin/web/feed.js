/*
 * Talks to the proxy: asks it every two seconds, and listens to its live feed in between.
 *
 * A connection that breaks is made anew, with pauses that grow and vary. After each break everything
 * is asked again and the feed goes on from the last event of that answer, so nothing is missed.
 */

const ASK_MS = 2000;
const TIMEOUT_MS = 4000;
const SILENT_MS = 7000;
const MAX_PAUSE_MS = 10_000;
const TOKEN = "sentinel-admin-token";
const MAY_BE_A_SUBPROTOCOL = /^[!#$%&'*+\-.^`|~\w]+$/;

/** The proxy has answered, with an error. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const address = (path) => new URL(path, document.baseURI);

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/**
 * Send a request and return the answer, parsed where it is JSON.
 *
 * @throws {Refused} The proxy answered with an error.
 * @throws {TypeError|DOMException} It did not answer, or not in time.
 */
export async function ask(path, { body, timeout = TIMEOUT_MS } = {}) {
  const headers = {};
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(address(path), {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(timeout),
  });
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  const value = isJson ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Refused(answer.status, value?.error?.message ?? `the proxy answered ${answer.status}`);
  return value;
}

/**
 * Keeps a picture of the proxy up to date.
 *
 * `on` has what is called: `snapshot(all)` after each (re)connect, `asked(some)` every two seconds,
 * `frame(frame)` for each event, `link(state)` when the connection changes, and `refused(error)`
 * where it is not a matter of trying again. `state` is `{live, since, retryAt, waiting}`.
 */
export class Feed {
  constructor(on) {
    this._on = on;
    this._pause = 500;
    this._heard = 0;
    this._lastId = null;
    this._socket = null;
    this._timer = null;
    this._asking = false;
    this._turn = 0; // an answer to an earlier attempt to connect is dropped
    this._frames = 0; // an answer that a frame has overtaken, too
    this.live = false;
    setInterval(() => this._tick(), ASK_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this._seen());
    addEventListener("online", () => this.now());
  }

  /** Connect at once. */
  async now() {
    this._drop();
    const turn = ++this._turn;
    try {
      const events = await ask("api/events");
      const [status, incidents, totals, health] = await Promise.all([
        ask("api/providers/status"), ask("api/incidents?limit=50"), ask("api/metrics"), ask("health"),
      ]);
      if (turn !== this._turn) return;
      this._lastId = events.last_id;
      this._on.snapshot({ events: events.events, status, incidents, totals, health });
      this._listen();
    } catch (error) {
      if (turn === this._turn) this._failed(error);
    }
  }

  _listen() {
    const url = address("ws/system-events");
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("since", this._lastId);
    const protocols = ["sentinel"];
    if (token.get() && MAY_BE_A_SUBPROTOCOL.test(token.get())) protocols.push(`bearer.${token.get()}`);
    else if (token.get()) url.searchParams.set("token", token.get());
    const socket = (this._socket = new WebSocket(url, protocols));
    socket.onopen = () => this._isLive();
    socket.onmessage = ({ data }) => this._received(JSON.parse(data));
    socket.onclose = () => this._socket === socket && this._failed(null);
  }

  _isLive() {
    this._pause = 500;
    this._heard = Date.now();
    this.live = true;
    this._on.link({ live: true });
    this._ask();
  }

  _received(frame) {
    this._heard = Date.now();
    this._frames += 1;
    if (frame.payload.missed) this.now();
    else this._on.frame(frame);
  }

  /** Somebody looks again; a page in the background has not asked meanwhile. */
  _seen() {
    this._heard = Date.now();
    this._tick();
  }

  async _tick() {
    if (!this.live || document.hidden) return;
    if (Date.now() - this._heard > SILENT_MS) this._failed(null);
    else await this._ask();
  }

  async _ask() {
    if (this._asking) return;
    this._asking = true;
    const frames = this._frames;
    try {
      const [status, totals, series, incidents, health] = await Promise.all([
        ask("api/providers/status"), ask("api/metrics"), ask("metrics"), ask("api/incidents?limit=50"), ask("health"),
      ]);
      this._heard = Date.now();
      const overtaken = frames !== this._frames;
      if (this.live) this._on.asked({ totals, series, health, ...(overtaken ? {} : { status, incidents }) });
    } catch (error) {
      if (this.live) this._failed(error);
    } finally {
      this._asking = false;
    }
  }

  _failed(error) {
    this._drop();
    if (error instanceof Refused && [401, 403].includes(error.status)) {
      this._on.refused(error);
      return;
    }
    const pause = this._pause * (0.5 + Math.random() / 2);
    this._pause = Math.min(MAX_PAUSE_MS, this._pause * 2);
    this._on.link({ live: false, since: this._heard, retryAt: Date.now() + pause });
    this._timer = setTimeout(() => this.now(), pause);
  }

  _drop() {
    clearTimeout(this._timer);
    this.live = false;
    const socket = this._socket;
    this._socket = null;
    socket?.close();
  }
}
