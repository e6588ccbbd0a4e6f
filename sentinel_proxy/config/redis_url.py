"""
Where a Redis is, as one line: `redis://user:password@host:6379/0?ssl_ca_certs=ca.pem` and its kin.

    redis://host:6379/0                                   rediss:// with TLS
    unix:///path/to/socket?db=0
    redis+sentinel://host:26379,host:26379/0?service=mymaster    rediss+sentinel:// with TLS
    redis+cluster://host:7000,host:7000                   rediss+cluster:// with TLS

Pure. What is wrong is told without quoting: a password may stand anywhere in it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)

ADDRESS: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """
    A Redis, and how to speak to it.

    Attributes:
        topology: "single", "sentinel" (*addresses* are those of the sentinels) or "cluster"
            (*addresses* are some of its servers).
        addresses: Host and port; empty where there is a `path`.
        path: Of a Unix socket; "" where there is none.
        service: What the sentinels call the server.
        options: By the names that redis-py has for them, of their types.
    """

    topology: str
    tls: bool
    addresses: tuple[tuple[str, int], ...]
    path: str
    database: int
    username: str | None
    password: str | None
    service: str | None
    sentinel_username: str | None
    sentinel_password: str | None
    options: Mapping[str, Any]

    def __repr__(self) -> str:
        """Say where it is, and nothing that is secret."""
        where = ",".join(f"{host}:{port}" for host, port in self.addresses) or self.path
        return f"<RedisUrl {self.topology} at {where}>"


def parse_redis_url(text: str) -> RedisUrl:
    """
    Read *text*.

    Raises:
        ValueError: With what would be right, for people.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    rest, _, query = rest.partition("?")
    userinfo, at, place = rest.rpartition("@")
    hosts, slash, path = place.partition("/")
    topology = scheme.partition("+")[2] or "single"
    tls = scheme.startswith("rediss")
    options = _options(query, tls, topology)
    username, colon, password = userinfo.partition(":")
    if at and not colon:
        raise ValueError('must have a ":" before the password, as "redis://:password@host:6379/0" has it')
    addresses: tuple[tuple[str, int], ...] = ()
    if scheme == "unix":
        if hosts or not path:
            raise ValueError('must name the path of a socket, as "unix:///run/redis.sock" does')
        database = options.pop("db", 0)
    else:
        addresses = _addresses(hosts, SENTINEL_PORT if topology == "sentinel" else REDIS_PORT, topology)
        database = _database(path, options)
    if topology == "cluster" and database:
        raise ValueError("must not name a database: a cluster has only the one with the number 0")
    if topology == "sentinel" and "service" not in options:
        raise ValueError('must say what the sentinels call the server, as "?service=mymaster" does')
    return RedisUrl(
        topology=topology,
        tls=tls,
        addresses=addresses,
        path=unquote(slash + path) if scheme == "unix" else "",
        database=database,
        username=unquote(username) or options.pop("username", None),
        password=unquote(password) or options.pop("password", None),
        service=options.pop("service", None),
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=options.pop("sentinel_password", None),
        options=options,
    )


def _addresses(hosts: str, port: int, topology: str) -> tuple[tuple[str, int], ...]:
    addresses = tuple(_address(host, port) for host in hosts.split(","))
    if topology == "single" and len(addresses) > 1:
        raise ValueError(
            "must name one host; several are for redis+sentinel:// (any sentinels) and redis+cluster://"
        )
    return addresses


def _address(text: str, port: int) -> tuple[str, int]:
    """`host`, `host:6379` or `[::1]:6379`."""
    match = ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"] or port) < 65536:
        raise ValueError('must name a host and a port that can be read, as "redis://host:6379/0" does')
    return match["host"].strip("[]"), int(match["port"] or port)


def _database(path: str, options: dict[str, Any]) -> int:
    number: int = options.pop("db", 0)
    if not path:
        return number
    if not (path.isascii() and path.isdigit()):
        raise ValueError('must end with the number of a database, as "redis://host:6379/0" does')
    return int(path)


def _options(query: str, tls: bool, topology: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if (read := OPTIONS.get(name)) is None:
            raise ValueError(f"has an option that is not known; there are {', '.join(OPTIONS)}")
        if name.startswith("ssl_") and not tls:
            raise ValueError('has options for TLS, but does not begin with "rediss"')
        if name in SENTINEL_OPTIONS and topology != "sentinel":
            raise ValueError(f"has {name}, which is for redis+sentinel:// only")
        try:
            options[name] = read(value)
        except ValueError:
            raise ValueError(f"has a value of {name} that cannot be read") from None
    return options


def _text(value: str) -> str:
    if not value:
        raise ValueError
    return value


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError
    return int(value)


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < 3600:
        raise ValueError
    return seconds


def _yes(value: str) -> bool:
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in answers:
        raise ValueError
    return answers[value.lower()]


def _judgement(value: str) -> str:
    if value not in ("required", "none"):
        raise ValueError
    return value


OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "db": _number,
    "username": _text,
    "password": _text,
    "service": _text,
    "sentinel_username": _text,
    "sentinel_password": _text,
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
    "ssl_ca_certs": _text,
    "ssl_ca_path": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _text,
    "ssl_cert_reqs": _judgement,
    "ssl_check_hostname": _yes,
}
"""What may stand behind the question mark, and how it is read."""

SENTINEL_OPTIONS: Final = {"service", "sentinel_username", "sentinel_password"}
