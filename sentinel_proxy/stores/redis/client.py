"""
Reaching a Redis: one server, the master that sentinels name, or the servers of a cluster.

Nothing is tried twice, and nobody waits for long: the store is advisory, and `replica.link` decides
when to ask again. Whatever redis-py raises becomes `StoreAway`, in our own words: its texts may
quote what was sent.
"""

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot

from sentinel_proxy.config.redis_url import RedisUrl
from sentinel_proxy.stores.base import StoreAway

COMMAND_SECONDS: Final = 0.25
"""For one command, with the connection that it may have to make."""

DIRECTIONS_SECONDS: Final = 0.1
"""For each sentinel, or server of a cluster, that is asked where to go; the next one may know."""


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """
    Raise `TimeoutError` unless the context is left within *seconds*.

    Also finds a cancellation that was lost in it: `asyncio.wait_for` of Python 3.11, which redis-py
    calls, returns as if nothing had been if what it waits for is done at the same moment.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    async with asyncio.timeout(seconds):
        yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


class Moments:
    """
    What time it is where the state is kept: the clocks of two machines are never compared.

    Args:
        now: Unix seconds instead, in tests.
    """

    def __init__(self, now: Callable[[], float] | None) -> None:
        self._now = now

    def for_scripts(self) -> str:
        """Return what a script takes for the time; empty: it asks its server."""
        return "" if self._now is None else str(round(self._now() * 1_000_000))

    async def microseconds(self, client: Any) -> int:
        """Ask the server of *client*, which may be a pipeline that watches."""
        if self._now is not None:
            return round(self._now() * 1_000_000)
        seconds, microseconds = await client.time()
        return int(seconds) * 1_000_000 + int(microseconds)

    async def milliseconds(self, client: Any) -> int:
        """Ask for milliseconds."""
        return await self.microseconds(client) // 1000


Owner = tuple[int, int, tuple[str, int]]
"""In a cluster: the first and the last slot, and who has the keys in them."""


class Servers:
    """
    Clients of the servers on which keys are; belongs to the event loop that first uses it.

    A client waits for an answer as long as whoever asks; only what it does before, to make a
    connection and to find its way, has time-outs of its own.

    Attributes:
        seconds: How much patience one command deserves.
    """

    def __init__(self, url: RedisUrl) -> None:
        ways = 0 if url.topology == "single" else len(url.addresses)
        self.seconds = url.options.get("socket_timeout", COMMAND_SECONDS) + ways * DIRECTIONS_SECONDS
        self._url = url
        self._options = _options(url)
        self._clients: dict[tuple[str, int], Any] = {}  # by host and port
        self._owners: list[Owner] = []  # of a cluster; empty: unknown
        self._one: Any = None  # the client, where there is no cluster
        self._sentinel: Any = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Servers {self._url!r}>"

    async def of(self, key: str) -> Any:
        """
        Return a client of the server that has *key*, a `redis.asyncio.Redis`. It is closed with us.

        Raises:
            StoreAway: We are closed, or a cluster does not tell who has it.
        """
        if self._closed:
            raise StoreAway("redis is not open")
        if self._url.topology == "cluster":
            return await self._of_cluster(key)
        if self._one is None:
            self._one = self._alone()
        return self._one

    def forget(self) -> None:
        """Ask anew who has which key, after a server said that it has not, or said nothing."""
        self._owners = []

    async def aclose(self) -> None:
        """Close every connection for good; whoever waits for an answer gets `StoreAway`."""
        self._closed = True
        self.forget()
        ours = [*self._clients.values(), self._one, self._sentinel]
        self._clients, self._one, self._sentinel = {}, None, None
        for each in ours:
            if each is not None:
                await _close(each)

    def _alone(self) -> Any:
        url = self._url
        if url.topology == "sentinel":
            tls = {"ssl": True} if url.tls else {}
            own = {"db": 0, "username": url.sentinel_username, "password": url.sentinel_password, **tls}
            sentinel: Any = Sentinel
            self._sentinel = sentinel(
                list(url.addresses), sentinel_kwargs={**self._options, **DIRECTIONS, **own}
            )
            return self._sentinel.master_for(url.service, **self._options, **tls)
        if url.path:
            return _client(UnixDomainSocketConnection, path=url.path, **self._options)
        return self._at(*url.addresses[0])

    def _at(self, host: str, port: int) -> Any:
        if (client := self._clients.get((host, port))) is None:
            kind = SSLConnection if self._url.tls else Connection
            client = self._clients[host, port] = _client(kind, host=host, port=port, **self._options)
        return client

    async def _of_cluster(self, key: str) -> Any:
        owners = self._owners or await self._asked_owners()
        slot = key_slot(key.encode())
        for first, last, address in owners:
            if first <= slot <= last:
                return self._at(*address)
        raise StoreAway("redis is a cluster that is not complete")

    async def _asked_owners(self) -> list[Owner]:
        """Ask one server after the other, until one tells who has which key."""
        away = StoreAway("redis cannot be reached")
        for host, port in self._url.addresses:
            try:
                with in_plain_words():
                    async with asyncio.timeout(DIRECTIONS_SECONDS):
                        answer = await self._at(host, port).execute_command("CLUSTER SLOTS")
            except StoreAway as error:
                away = error
                continue
            self._owners = [
                (first, last, (owner[0].decode() or host, owner[1])) for first, last, owner, *_ in answer
            ]
            return self._owners
        raise away


def _options(url: RedisUrl) -> dict[str, Any]:
    """Return what every connection is made with."""
    return {
        "socket_connect_timeout": COMMAND_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # one shape of answers, whatever server and proxy are between
        "driver_info": None,  # costs a new connection an answer more
        "db": url.database,
        "username": url.username,
        "password": url.password,
        **url.options,
        "socket_timeout": None,
    }


DIRECTIONS: Final = {"socket_timeout": DIRECTIONS_SECONDS, "socket_connect_timeout": DIRECTIONS_SECONDS}


def _client(connection: type[Any], **options: Any) -> Redis:
    return Redis.from_pool(ConnectionPool(connection_class=connection, **options))


async def _close(client: Any) -> None:
    """Close it whatever state it is in; a cancelled closer still does not wait for a dead server."""
    with suppress(exceptions.RedisError, OSError, TimeoutError):
        async with asyncio.timeout(COMMAND_SECONDS):
            await client.aclose()


# Some faults leak from redis-py as what asyncio makes of a connection that was reset while idle
# (redis/redis-py #4287): TypeError and AttributeError.
_THEIRS: Final = (
    exceptions.RedisError,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    TypeError,
    AttributeError,
)


@contextmanager
def in_plain_words() -> Iterator[None]:
    """Turn what redis-py raises into `StoreAway`, `Refused` or `Elsewhere`."""
    try:
        yield
    except _THEIRS as error:
        kind = Refused if _is_refusal(error) else Elsewhere if _is_elsewhere(error) else StoreAway
        raise kind(f"redis {_why(error)}") from None


class Refused(StoreAway):
    """The server does not let us use a command at all."""


class Elsewhere(StoreAway):
    """The server does not have the key, or is no master any more."""


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, exceptions.NoPermissionError):
        return True
    return isinstance(error, exceptions.ResponseError) and "unknown command" in str(error)


def _is_elsewhere(error: Exception) -> bool:
    return isinstance(
        error,
        exceptions.AskError
        | exceptions.ClusterDownError
        | exceptions.ConnectionError
        | exceptions.TimeoutError,
    )


def _why(error: BaseException) -> str:
    """Say what happened, behind "redis": never with the server's or the library's own words."""
    for kind, words in WORDS.items():
        if isinstance(error, kind):
            return words
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"cannot be reached: its certificate was not accepted ({cause.verify_message})"
    if isinstance(cause, OSError) and (reason := _reason(cause)):
        return f"cannot be reached: {reason.lower()}"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return "cannot be reached: the connection was lost or could not be made"
    if isinstance(error, exceptions.ResponseError) and IN_A_SCRIPT.search(str(error)):
        return FORBIDDEN
    if isinstance(error, exceptions.ResponseError):
        if (within := CODE_IN_A_SCRIPT.search(str(error))) is not None:
            return CODES.get(within[1], f"refuses ({within[1]})")
        code = str(error).split(" ", 1)[0]
        return f"refuses ({code})" if code.isupper() and code.isalpha() else "refuses"
    return f"failed with {type(error).__name__}"


def _reason(error: OSError) -> str | None:
    """Name what the system says; asyncio writes the address in its place."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror
    return os.strerror(error.errno)


FORBIDDEN: Final = "does not permit its user a command or a key that is needed"
IN_A_SCRIPT: Final = re.compile("executing the script can't|ACL failure in script")
"""How servers say so, up to 7.0 and since, of a command within a script."""

WORDS: Final[dict[type[BaseException] | tuple[type[BaseException], ...], str]] = {
    (
        exceptions.AuthenticationError,
        exceptions.AuthenticationWrongNumberOfArgsError,
    ): "refuses the user or the password",
    (exceptions.NoPermissionError, exceptions.AuthorizationError): FORBIDDEN,
    MasterNotFoundError: "has no master that the sentinels know of",
    exceptions.BusyLoadingError: "is loading what it keeps",
    exceptions.ReadOnlyError: "is a replica that only reads",
    exceptions.OutOfMemoryError: "has no memory left",
    exceptions.MaxConnectionsError: "has too many connections",
    (exceptions.AskError, exceptions.ClusterDownError): "is a cluster in which keys are moving",
    (exceptions.TimeoutError, TimeoutError): "did not answer in time",
}
"""What is known by its kind; the first that fits."""

CODE_IN_A_SCRIPT: Final = re.compile(r"@user_script: ?[0-9]+: -([A-Z]+) ")
CODES: Final = {"READONLY": WORDS[exceptions.ReadOnlyError], "OOM": WORDS[exceptions.OutOfMemoryError]}
"""Up to 6.2 a server wraps what went wrong in a script, so that only its text tells."""
