"""
Changes as scripts: one round trip each, and nobody comes between.

The scripts lie in `scripts/`. They are sent by their fingerprints; a server that has forgotten
them, after a restart or `SCRIPT FLUSH`, is sent the text again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

from redis.exceptions import NoScriptError

from sentinel_proxy.resilience.rate_limit import Decision
from sentinel_proxy.stores.records import KEPT_SECONDS, BreakerRecord, Contribution, SharedIncident
from sentinel_proxy.stores.redis.client import Moments, Servers
from sentinel_proxy.stores.redis.layout import (
    SWEPT_EVERY,
    TOLD_LENGTH,
    TOLD_SECONDS,
    Keys,
    decisions,
    milliseconds,
    read_entry,
    read_incident,
    record_json,
)
from sentinel_proxy.wire import json

_FOLDER: Final = resources.files("sentinel_proxy.stores.redis") / "scripts"
_PRELUDE: Final = (_FOLDER / "prelude.lua").read_text()


class Script:
    """One script of `scripts/`."""

    def __init__(self, name: str) -> None:
        self.text = f"{_PRELUDE}\n{(_FOLDER / f'{name}.lua').read_text()}"
        self.fingerprint = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Scripted:
    """The ways to change what is kept that need more than one command."""

    def __init__(self, servers: Servers, keys: Keys, moments: Moments, incidents: int) -> None:
        self._servers = servers
        self._keys = keys
        self._moments = moments
        self._incidents = incidents

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord:
        """See `Store`."""
        entry, now = await self._run(
            MERGE_BREAKER,
            (self._keys.breakers, self._keys.told),
            record.key,
            record_json(record),
            milliseconds(KEPT_SECONDS),
            TOLD_LENGTH,
            milliseconds(TOLD_SECONDS),
            SWEPT_EVERY,
        )
        stands = read_entry(entry, int(now))
        assert stands is not None  # it was kept just now
        return stands

    async def take_lease(self, name: str, owner: str, seconds: float, places: int) -> float:
        """See `Store`."""
        wait = await self._run(TAKE_LEASE, (self._keys.lease(name),), owner, milliseconds(seconds), places)
        return float(wait) / 1000

    async def admit(
        self, client: str, limit: int, window_seconds: float, requests: int
    ) -> Sequence[Decision]:
        """See `Store`; *limit* is above 0."""
        window = round(window_seconds * 1_000_000)
        admitted, remaining, retry, reset = await self._run(
            ADMIT, (self._keys.limit(client),), limit, window, requests
        )
        refusal = Decision(False, limit, 0, retry / 1_000_000, reset / 1_000_000)
        return decisions(admitted, remaining, window_seconds, refusal, requests)

    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        """See `Store`."""
        id, parts, *data = await self._run(
            CONTRIBUTE,
            self._keys.ring,
            self._incidents,
            contribution.key,
            contribution.replica,
            contribution.id,
            int(contribution.ongoing),
            contribution.data,
            *alive,
        )
        ids = [part[0].encode() for part in json.loads(parts)["parts"]]
        return read_incident(id.decode(), parts, dict(zip(ids, data, strict=True)))

    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]:
        """See `Store`."""
        answer = await self._run(BEAT, (self._keys.replicas,), replica, milliseconds(seconds), presence)
        return {name.decode(): said for name, said in zip(answer[::2], answer[1::2], strict=True)}

    async def _run(self, script: Script, keys: tuple[str, ...], *words: str | bytes | int) -> Any:
        client = await self._servers.of(keys[0])
        rest = (len(keys), *keys, self._moments.for_scripts(), *words)
        try:
            return await client.execute_command("EVALSHA", script.fingerprint, *rest)
        except NoScriptError:
            return await client.execute_command("EVAL", script.text, *rest)


MERGE_BREAKER: Final = Script("merge_breaker")
TAKE_LEASE: Final = Script("take_lease")
ADMIT: Final = Script("admit")
CONTRIBUTE: Final = Script("contribute")
BEAT: Final = Script("beat")
