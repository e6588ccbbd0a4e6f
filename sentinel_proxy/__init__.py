"""
Sentinel Proxy keeps applications alive through the outages of their LLM providers.

Six nouns carry the code:

- A **call** is one client request as we carry it (`model.Call`).
- A **provider** says what to send to one upstream and how to read its answer
  (`providers`); it does no I/O.
- An **upstream** is the server behind a provider. Only `upstream` opens sockets to it.
- An **attempt** is one try of one call at one provider. Before each, a **breaker**
  (`resilience.breaker`) is asked for a permit; the attempt's end is its vote.
- A **reply** is an answer that has begun (`reply.Reply`). It owns the upstream's
  connection and the permit, and gives both back on every way out.

The story of a call, top to bottom, is `failover.py`. The program is put together in
`app.py`. Everything that watches (log, metrics, incidents, dashboard) listens to
`events`; the core reports facts and never waits for a listener.
"""

__version__ = "0.1.0"
