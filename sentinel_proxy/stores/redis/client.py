"""
Reaching a Redis: one server, the master that sentinels name, or the servers of a cluster.

Everything is impatient and nothing is tried twice: the store is advisory, and `replica.link` decides
when to ask again. Whatever redis-py raises becomes `StoreAway`, in our own words: its texts may
quote what was sent.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff

from sentinel_proxy.config.redis_url import RedisUrl
from sentinel_proxy.stores.base import StoreAway

COMMAND_SECONDS: Final = 0.25
"""For a connection to be made, and for each answer on it."""


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


class Servers:
    """
    Clients of the servers on which keys are; belongs to the event loop that first uses it.

    Args:
        silence_seconds: How long an answer may take.
    """

    def __init__(self, url: RedisUrl, silence_seconds: float = COMMAND_SECONDS) -> None:
        self._url = url
        self._options = _options(url, silence_seconds)
        self._clients: dict[tuple[str, int], Any] = {}  # by host and port
        self._sentinel: Any = None
        self._cluster: RedisCluster | None = None
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
        address = next(iter(self._url.addresses), (self._url.path, 0))
        if (client := self._clients.get(address)) is None:
            client = self._clients[address] = self._alone()
        return client

    async def forget(self) -> None:
        """Learn anew who has which key, after a server said that it has not, or said nothing."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await _close(cluster)

    async def aclose(self) -> None:
        """Close every connection for good; whoever waits for an answer gets `StoreAway`."""
        self._closed = True
        await self.forget()
        clients, self._clients = list(self._clients.values()), {}
        sentinel, self._sentinel = self._sentinel, None
        for client in clients:
            await _close(client)
        if sentinel is not None:
            await _close(sentinel)

    def _alone(self) -> Any:
        url = self._url
        if url.topology == "sentinel":
            tls = {"ssl": True} if url.tls else {}
            own = {"db": 0, "username": url.sentinel_username, "password": url.sentinel_password, **tls}
            sentinel: Any = Sentinel
            self._sentinel = sentinel(list(url.addresses), sentinel_kwargs={**self._options, **own})
            return self._sentinel.master_for(url.service, **self._options, **tls)
        if url.path:
            return _client(UnixDomainSocketConnection, path=url.path, **self._options)
        return self._at(*url.addresses[0])

    def _at(self, host: str, port: int) -> Redis:
        kind = SSLConnection if self._url.tls else Connection
        return _client(kind, host=host, port=port, **self._options)

    async def _of_cluster(self, key: str) -> Redis:
        if (cluster := self._cluster) is None:
            cluster = await self._asked_cluster()
        with in_plain_words():
            node = cluster.get_node_from_key(key)
        if node is None:
            raise StoreAway("redis has nobody who keeps the keys that are needed")
        address = str(node.host), int(node.port)
        if (client := self._clients.get(address)) is None:
            client = self._clients[address] = self._at(*address)
        return client

    async def _asked_cluster(self) -> RedisCluster:
        """Return the cluster as it is now; of us it is only asked who has which key."""
        nodes = [ClusterNode(host, port) for host, port in self._url.addresses]
        options = {name: value for name, value in self._options.items() if name not in ("db", "driver_info")}
        cluster = RedisCluster(startup_nodes=nodes, ssl=self._url.tls, driver_info=None, **options)
        try:
            with in_plain_words():
                await cluster.initialize()
        except BaseException:
            await _close(cluster)
            raise
        if self._cluster is not None:  # somebody else was quicker
            await _close(cluster)
            return self._cluster
        self._cluster = cluster
        return cluster


def _options(url: RedisUrl, silence_seconds: float) -> dict[str, Any]:
    """Return what every connection is made with."""
    return {
        "socket_connect_timeout": COMMAND_SECONDS,
        "socket_timeout": silence_seconds,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # one shape of answers, whatever server and proxy are between
        "driver_info": None,  # costs a new connection an answer more
        "db": url.database,
        "username": url.username,
        "password": url.password,
        **url.options,
    }


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
    exceptions.RedisClusterException,
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
    if isinstance(cause, OSError) and cause.strerror:
        return f"cannot be reached: {cause.strerror.lower()}"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return "cannot be reached: the connection was lost or could not be made"
    if isinstance(error, exceptions.ResponseError):
        code = str(error).split(" ", 1)[0]
        return f"refuses ({code})" if code.isupper() and code.isalpha() else "refuses"
    return f"failed with {type(error).__name__}"


WORDS: Final[dict[type[BaseException] | tuple[type[BaseException], ...], str]] = {
    (
        exceptions.AuthenticationError,
        exceptions.AuthenticationWrongNumberOfArgsError,
    ): "refuses the user or the password",
    (exceptions.NoPermissionError, exceptions.AuthorizationError): (
        "does not permit its user a command or a key that is needed"
    ),
    MasterNotFoundError: "has no master that the sentinels know of",
    exceptions.BusyLoadingError: "is loading what it keeps",
    exceptions.ReadOnlyError: "is a replica that only reads",
    exceptions.OutOfMemoryError: "has no memory left",
    exceptions.MaxConnectionsError: "has too many connections",
    (exceptions.AskError, exceptions.ClusterDownError): "is a cluster in which keys are moving",
    (exceptions.TimeoutError, TimeoutError): "did not answer in time",
}
"""What is known by its kind; the first that fits."""
