/*
 * From counters to rates. /metrics is read every two seconds; what happened in between is the
 * difference, so the page, Grafana and the alerts count the same calls.
 */

const LINE = /^(sentinel_\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const LOST = new Set(["failure", "truncated"]);
const SAVED = new Set(["failed_over", "rescued"]);

/** Rates are taken over this much time: shorter and they jump, longer and they come late. */
const SMOOTH_SECONDS = 6;

/** Latencies need more calls than rates do. */
const LATENCY_SECONDS = 20;

/**
 * Read Prometheus' text format into the few sums that are shown.
 *
 * @returns {object} `answered` by provider, `lost`, `saved`, `calls`, `tokens`; histograms `whole`
 *     `first` and `own` (the proxy's) as `{buckets: Map(le, count), count}`.
 */
export function read(text) {
  const sums = { answered: {}, lost: 0, saved: 0, calls: 0, tokens: 0, whole: histogram(), first: histogram(), own: histogram() };
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (match) add(sums, match[1], labels(match[2] ?? ""), Number(match[3]));
  }
  return sums;
}

const histogram = () => ({ buckets: new Map(), count: 0 });
const labels = (text) => Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, value]));

function add(sums, name, { provider, outcome, le }, value) {
  switch (name) {
    case "sentinel_requests_total":
      sums.calls += value;
      if (LOST.has(outcome)) sums.lost += value;
      else sums.answered[provider] = (sums.answered[provider] ?? 0) + value;
      if (SAVED.has(outcome)) sums.saved += value;
      break;
    case "sentinel_tokens_total":
      sums.tokens += value;
      break;
    case "sentinel_request_duration_seconds_bucket":
      if (provider !== "none") bucket(sums.whole, le, value); // a refusal is no answer, and soon there
      break;
    case "sentinel_time_to_first_token_seconds_bucket":
      bucket(sums.first, le, value);
      break;
    case "sentinel_overhead_seconds_bucket":
      bucket(sums.own, le, value);
      break;
  }
}

function bucket(histogram, le, value) {
  const edge = Number(le.replace("+Inf", "Infinity"));
  histogram.buckets.set(edge, (histogram.buckets.get(edge) ?? 0) + value);
  if (edge === Infinity) histogram.count += value;
}

/** The last minutes, one point each time /metrics was read. */
export class History {
  /** @param {number} keepSeconds */
  constructor(keepSeconds) {
    this.keepSeconds = keepSeconds;
    this.points = [];
    this._readings = [];
  }

  /** Begin with what the event ring tells of the time before: the `metrics` frames, oldest first. */
  seed(frames) {
    const known = frames.map(({ timestamp, payload }) => ({ time: Date.parse(timestamp), payload }));
    const points = [];
    for (let i = 1; i < known.length; i++) {
      const [one, two] = [known[i - 1], known[i]];
      const seconds = (two.time - one.time) / 1000;
      const rate = (read) => (read(two.payload) - read(one.payload)) / seconds;
      const calls = rate((each) => each.total_requests);
      if (seconds < 0.5 || calls < 0) continue; // or the proxy was started in between
      const lost = rate((each) => each.total_failures);
      points.push({
        time: two.time, calls, lost, saved: null, answered: { "": Math.max(0, calls - lost) },
        tokens: rate((each) => each.tokens.total), whole: null, first: null, own: null,
      });
    }
    const oldest = this.points.find((point) => !("" in point.answered))?.time ?? Infinity;
    this.points = [...points.filter((point) => point.time < oldest), ...this.points.filter((point) => point.time >= oldest)];
  }

  /** Take one reading of /metrics. */
  add(time, sums) {
    const last = this._readings.at(-1);
    if (last && sums.calls < last.sums.calls) this._readings = []; // the proxy was started anew
    this._readings.push({ time, sums });
    this._readings = this._readings.filter((each) => time - each.time <= LATENCY_SECONDS * 1000);
    if (this._readings.length > 1) this.points.push(this._point(time, sums));
    this.points = this.points.filter((each) => time - each.time <= this.keepSeconds * 1000);
  }

  _before(time, seconds) {
    return this._readings.find((each) => time - each.time <= seconds * 1000 && each.time < time) ?? this._readings.at(-2);
  }

  _point(time, sums) {
    const { time: then, sums: before } = this._before(time, SMOOTH_SECONDS);
    const seconds = (time - then) / 1000;
    const old = this._before(time, LATENCY_SECONDS).sums;
    return {
      time,
      calls: (sums.calls - before.calls) / seconds,
      lost: (sums.lost - before.lost) / seconds,
      saved: (sums.saved - before.saved) / seconds,
      tokens: (sums.tokens - before.tokens) / seconds,
      answered: Object.fromEntries(
        Object.entries(sums.answered).map(([name, count]) => [name, (count - (before.answered[name] ?? 0)) / seconds]),
      ),
      whole: quantiles(sums.whole, old.whole),
      first: quantiles(sums.first, old.first),
      own: quantiles(sums.own, old.own),
    };
  }

  /** Who answered lately, `[{name, share}]`, the busiest first; nobody if there were no calls. */
  served() {
    const answered = this.points.at(-1)?.answered ?? {};
    const known = Object.entries(answered).filter(([name, rate]) => name && name !== "none" && rate > 0);
    const total = known.reduce((sum, [, rate]) => sum + rate, 0);
    return known.map(([name, rate]) => ({ name, rate, share: rate / total })).sort((one, two) => two.share - one.share);
  }
}

/** Return `{half, most}`: within how many seconds half of the calls, and 95 of 100, were done. */
export function quantiles(now, before) {
  const count = now.count - before.count;
  if (count <= 0) return null;
  const edges = [...now.buckets.keys()].sort((one, two) => one - two);
  const within = edges.map((edge) => now.buckets.get(edge) - (before.buckets.get(edge) ?? 0));
  return { half: quantile(0.5, edges, within, count), most: quantile(0.95, edges, within, count) };
}

/** As Prometheus' histogram_quantile does it: straight lines within a bucket. */
function quantile(share, edges, within, count) {
  const rank = share * count;
  const i = within.findIndex((each) => each >= rank);
  if (edges[i] === Infinity) return edges[i - 1] ?? 0;
  const [low, below] = i ? [edges[i - 1], within[i - 1]] : [0, 0];
  return low + ((edges[i] - low) * (rank - below)) / (within[i] - below || 1);
}
