"""
Callers' HTTP/1.1 connections: what the server hands requests to.

A protocol for uvicorn's server, which accepts, counts and closes connections and runs the
lifespan; it stands in the place of uvicorn's own because it does less for each call, and because
it can do three things more: an answer's head and the first of its body leave in one write, a stream
can be written from wherever its bytes arrive, without waking the task that serves the call
(`Turn.write`), and a hang-up is told without a task that waits for it (`Turn.when_gone`).
Everything else about it is ASGI. The reasons and the figures are in
docs/decisions/0016-own-server-protocol.md.
"""

from sentinel_proxy.inbound.connection import Inbound

__all__ = ["Inbound"]
