"""Where a Redis is, in one line: what can be said, and what people are told who said it wrong."""

from typing import Any

import pytest

from sentinel_proxy.config.redis_url import OPTIONS, SCHEMES, RedisUrl, parse_redis_url


def parsed(text: str) -> dict[str, Any]:
    """Return what *text* says beyond the defaults."""
    url = parse_redis_url(text)
    fields = {name: getattr(url, name) for name in RedisUrl.__slots__}
    return {name: value for name, value in fields.items() if value}


def single(host: str = "host", port: int = 6379, **more: Any) -> dict[str, Any]:
    return {"topology": "single", "addresses": ((host, port),), **more}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://host", single()),
        ("redis://host:6380", single(port=6380)),
        ("redis://host:6379/", single()),
        ("redis://host/3", single(database=3)),
        ("redis://host?db=3", single(database=3)),
        ("redis://[::1]:6380/0", single("::1", 6380)),
        ("redis://10.0.0.7", single("10.0.0.7")),
        ("redis://:word@host", single(password="word")),
        ("redis://user:word@host", single(username="user", password="word")),
        ("redis://user:w%40rd%2F%3f@host", single(username="user", password="w@rd/?")),
        ("redis://user:w@r/d@host", single(username="user", password="w@r/d")),
        ("redis://host?username=user&password=w%2520", single(username="user", password="w%20")),
        ("redis://host?socket_timeout=0.5", single(options={"socket_timeout": 0.5})),
        ("rediss://host", single(tls=True)),
        (
            "rediss://host?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=no",
            single(tls=True, options={"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": False}),
        ),
        ("unix:///run/redis.sock", {"topology": "single", "path": "/run/redis.sock"}),
        (
            "unix://user:word@/run/a%20b?db=2",
            {"topology": "single", "path": "/run/a b", "username": "user", "password": "word", "database": 2},
        ),
        (
            "redis+sentinel://a,b:26380/1?service=main",
            {
                "topology": "sentinel",
                "addresses": (("a", 26379), ("b", 26380)),
                "database": 1,
                "service": "main",
            },
        ),
        (
            "rediss+sentinel://:word@a?service=main&sentinel_username=s&sentinel_password=p",
            {
                "topology": "sentinel",
                "tls": True,
                "addresses": (("a", 26379),),
                "password": "word",
                "service": "main",
                "sentinel_username": "s",
                "sentinel_password": "p",
            },
        ),
        (
            "redis+cluster://a:7000,[::1]:7001,c",
            {"topology": "cluster", "addresses": (("a", 7000), ("::1", 7001), ("c", 6379))},
        ),
        ("rediss+cluster://a/0", {"topology": "cluster", "tls": True, "addresses": (("a", 6379),)}),
    ],
)
def test_what_an_address_says_is_understood(text: str, said: dict[str, Any]) -> None:
    assert parsed(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://", "must name a host"),
        ("redis:///0", "must name a host"),
        ("redis://host:port", "must name a host"),
        ("redis://host:0", "must name a host"),
        ("redis://host:65536", "must name a host"),
        ("redis://host:", "must name a host"),
        ("redis://a b", "must name a host"),
        ("redis://höst", "must name a host"),
        ("redis://[::1", "must name a host"),
        ("redis://a:1,b:2", "must name one host"),
        ("redis://secret@host", 'must have a ":" before the password'),
        ("redis://host/name", "must end with the number of a database"),
        ("redis://host/0/1", "must end with the number of a database"),
        ("redis://host?tls=yes", "has an option that is not known; there are db, "),
        ("redis://host?ssl_ca_certs=ca.pem", "has options for TLS"),
        ("redis://host?service=main", "has service, which is for redis+sentinel://"),
        ("redis://host?socket_timeout=soon", "has a value of socket_timeout"),
        ("redis://host?socket_timeout=0", "has a value of socket_timeout"),
        ("redis://host?db=-1", "has a value of db"),
        ("redis://host?password=", "has a value of password"),
        ("rediss://host?ssl_cert_reqs=perhaps", "has a value of ssl_cert_reqs"),
        ("rediss://host?ssl_check_hostname=perhaps", "has a value of ssl_check_hostname"),
        ("unix://", "must name the path of a socket"),
        ("unix://host/run/redis.sock", "must name the path of a socket"),
        ("redis+sentinel://a", "must say what the sentinels call the server"),
        ("redis+cluster://a/1", "must not name a database"),
        ("redis+cluster://", "must name a host"),
        ("redis+unix:///run/redis.sock", "must begin with one of redis://"),
        ("http://host", "must begin with one of redis://"),
        ("host:6379", "must begin with one of redis://"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|has)") as told:
        parse_redis_url(text)

    assert str(told.value).startswith(said)


SECRET = "correct-horse"


@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{SECRET}@",
        f"redis://{SECRET}@host",
        f"redis://user:{SECRET}@host:port",
        f"redis://user:{SECRET}?@host",
        f"redis://host:{SECRET}",
        f"redis://host/{SECRET}",
        f"redis://host?{SECRET}",
        f"redis://host?db={SECRET}",
        f"rediss://host?ssl_check_hostname={SECRET}",
        f"{SECRET}://host",
    ],
)
def test_a_mistake_is_told_without_quoting(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|has)") as told:
        parse_redis_url(text)

    assert SECRET not in str(told.value)


def test_no_secret_is_in_what_an_address_shows_of_itself() -> None:
    options = f"service=main&sentinel_password={SECRET}"

    shown = repr(parse_redis_url(f"redis+sentinel://{SECRET}:{SECRET}@a,b:1/0?{options}"))

    assert shown == "<RedisUrl sentinel at a:26379,b:1>"


def test_every_scheme_can_be_used() -> None:
    rest = {"unix": "/run/redis.sock", "redis+sentinel": "a?service=b", "rediss+sentinel": "a?service=b"}

    urls = [parse_redis_url(f"{scheme}://{rest.get(scheme, 'a')}") for scheme in SCHEMES]

    assert sum(url.tls for url in urls) == 3


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_may_be_empty(name: str) -> None:
    with pytest.raises(ValueError, match=r"^has a value of \w+ that cannot be read"):
        parse_redis_url(f"rediss+sentinel://a?service=main&{name}=")
