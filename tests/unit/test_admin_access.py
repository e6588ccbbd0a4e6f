"""Who may see and do what operators may: one decision, asked directly."""

import json
from typing import Any

import pytest
from openai_schema import assert_valid

from sentinel_proxy.admin.access import Access, AccessMiddleware
from sentinel_proxy.api.address import caller_address, networks

TOKEN = "a-token-of-operators"


def scope(
    *,
    peer: str = "127.0.0.1",
    method: str = "GET",
    path: str = "/api/config",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    query: str = "",
    subprotocols: list[str] | None = None,
) -> dict[str, Any]:
    """Return an ASGI scope; with *subprotocols* that of a WebSocket."""
    pairs = headers.items() if isinstance(headers, dict) else headers or []
    made: dict[str, Any] = {
        "type": "http" if subprotocols is None else "websocket",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "client": (peer, 50_000),
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
    }
    if subprotocols is not None:
        del made["method"]
        made |= {"subprotocols": subprotocols, "extensions": {"websocket.http.response": {}}}
    return made


def code(access: Access, asked: dict[str, Any]) -> str | None:
    refusal = access.refusal(asked)
    return None if refusal is None else refusal.code


# With a token.


@pytest.mark.parametrize(
    "asked",
    [
        scope(headers={"Authorization": f"Bearer {TOKEN}"}),
        scope(headers={"Authorization": f"bearer  {TOKEN} "}),
        scope(headers={"Authorization": f"Bearer {TOKEN}"}, peer="203.0.113.9"),
        scope(headers={"Authorization": f"Bearer {TOKEN}"}, subprotocols=[]),
        scope(subprotocols=["sentinel", f"bearer.{TOKEN}"]),
        scope(subprotocols=[], query=f"since=&token={TOKEN}"),
    ],
    ids=["header", "any-case", "from-anywhere", "websocket-header", "subprotocol", "query"],
)
def test_whoever_shows_the_token_is_let_in(asked: dict[str, Any]) -> None:
    assert code(Access(TOKEN), asked) is None


@pytest.mark.parametrize(
    "asked",
    [
        scope(),
        scope(headers={"Authorization": "Bearer another"}),
        scope(headers={"Authorization": f"Basic {TOKEN}"}),
        scope(headers={"Authorization": f"Bearer {TOKEN}x"}),
        scope(headers={"Authorization": "Bearer "}),
        scope(query=f"token={TOKEN}"),
        scope(subprotocols=["sentinel"]),
        scope(subprotocols=["sentinel", "bearer.another"], query=f"token={TOKEN}"),
        scope(subprotocols=[], query="token="),
    ],
    ids=[
        "none",
        "wrong",
        "another-scheme",
        "longer",
        "empty",
        "query-of-http",
        "subprotocol-none",
        "the-first-counts",
        "query-empty",
    ],
)
def test_whoever_does_not_is_refused_even_on_this_machine(asked: dict[str, Any]) -> None:
    refusal = Access(TOKEN).refusal(asked)

    assert refusal is not None
    assert (refusal.status, refusal.code) == (401, "invalid_admin_token")
    assert (b"www-authenticate", b'Bearer realm="sentinel-proxy"') in refusal.headers
    assert TOKEN not in refusal.message


def test_the_refusal_tells_a_missing_token_from_a_wrong_one() -> None:
    missing = Access(TOKEN).refusal(scope())
    wrong = Access(TOKEN).refusal(scope(headers={"Authorization": "Bearer x"}))

    assert missing is not None
    assert wrong is not None
    assert ("is missing" in missing.message, "is not the one" in wrong.message) == (True, True)


def test_a_page_without_data_is_served_without_the_token() -> None:
    assert code(Access(TOKEN), scope(path="/dashboard", peer="203.0.113.9")) is None


def test_without_a_token_configured_the_page_too_is_for_this_machine() -> None:
    assert code(Access(None), scope(path="/dashboard", peer="203.0.113.9")) == "loopback_only"


# Without one: who is on this machine?


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_this_machine(peer: str) -> None:
    assert code(Access(None), scope(peer=peer)) is None


@pytest.mark.parametrize("peer", ["203.0.113.9", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "unknown"])
def test_everybody_else_is_told_why_not(peer: str) -> None:
    refusal = Access(None).refusal(scope(peer=peer))

    assert refusal is not None
    assert (refusal.status, refusal.code) == (403, "loopback_only")
    assert "another machine" in refusal.message
    assert "admin.token" in refusal.message


@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        (["127.0.0.1"], "127.0.0.1", None),
        (["127.0.0.1"], "203.0.113.9", "loopback_only"),
        (["127.0.0.1"], "127.0.0.1, 203.0.113.9", "loopback_only"),
        (["10.0.0.0/8", "127.0.0.1"], "127.0.0.1, 10.0.0.7", None),
        ([], "127.0.0.1", "loopback_only"),
        (["10.0.0.0/8"], "127.0.0.1", "loopback_only"),
    ],
    ids=["for-us", "for-a-stranger", "spoofed", "two-hops", "nobody-is-trusted", "another-is-trusted"],
)
def test_a_forwarded_request_counts_by_whom_it_is_forwarded_for(
    trusted: list[str], forwarded: str, expected: str | None
) -> None:
    asked = scope(headers={"X-Forwarded-For": forwarded})

    assert code(Access(None, trusted), asked) == expected


@pytest.mark.parametrize("name", ["Forwarded", "X-Real-IP", "X-Forwarded-Host", "Via"])
def test_a_proxy_that_does_not_say_for_whom_is_not_this_machine(name: str) -> None:
    asked = scope(headers={name: "1.1 somebody"})

    assert code(Access(None, ["127.0.0.1"]), asked) == "loopback_only"


def test_forwarding_in_lines_of_their_own_is_read_as_one() -> None:
    """RFC 9110 §5.3; HAProxy adds a line and leaves the caller's own as it was."""
    asked = scope(headers=[("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "203.0.113.9")])

    assert caller_address(asked, networks(["127.0.0.1"])) == "203.0.113.9"
    assert code(Access(None, ["127.0.0.1"]), asked) == "loopback_only"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "sentinel", "proxy.localhost", "10.0.0.1", ""]
)
def test_names_that_no_stranger_can_have_made_are_ours(host: str) -> None:
    assert code(Access(None), scope(headers={"Host": host})) is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::1"])
def test_a_domain_name_that_leads_to_this_machine_is_a_trap(host: str) -> None:
    """DNS rebinding: a web page whose own name is made to point here has no foreign origin."""
    assert code(Access(None), scope(headers={"Host": host})) == "loopback_only"


def test_with_a_token_any_name_will_do() -> None:
    asked = scope(headers={"Host": "proxy.example", "Authorization": f"Bearer {TOKEN}"})

    assert code(Access(TOKEN), asked) is None


# Web pages of others.

FOREIGN = [
    ("http://evil.example", "localhost:8000"),
    ("http://localhost:3000", "localhost:8000"),
    ("http://127.0.0.1:8000", "localhost:8000"),
    ("https://localhost", "localhost:8000"),
    ("null", "localhost:8000"),
    ("http://[::1", "localhost:8000"),
    ("http://localhost:8000", ""),
]
OWN = [
    ("http://localhost:8000", "localhost:8000"),
    ("http://LOCALHOST:8000", "localhost:8000"),
    ("http://localhost", "localhost"),
    ("https://localhost", "localhost:443"),
    ("http://localhost", "localhost:80"),
]


@pytest.mark.parametrize(("origin", "host"), FOREIGN)
def test_a_foreign_page_may_neither_listen_nor_order(origin: str, host: str) -> None:
    headers = {"Origin": origin, "Host": host, "Authorization": f"Bearer {TOKEN}"}

    for access in (Access(None), Access(TOKEN)):
        assert code(access, scope(headers=headers, subprotocols=[])) == "foreign_origin"
        assert code(access, scope(headers=headers, method="POST")) == "foreign_origin"


@pytest.mark.parametrize(("origin", "host"), OWN)
def test_our_own_page_may(origin: str, host: str) -> None:
    headers = {"Origin": origin, "Host": host}

    assert code(Access(None), scope(headers=headers, subprotocols=[])) is None
    assert code(Access(None), scope(headers=headers, method="POST")) is None


def test_reading_is_left_to_the_browsers_own_rule() -> None:
    """What a foreign page asks for with GET it cannot read: we allow no origin (CORS)."""
    headers = {"Origin": "http://evil.example", "Host": "localhost"}

    assert code(Access(None), scope(headers=headers)) is None


# The middleware.


async def answered(asked: dict[str, Any], access: Access) -> list[dict[str, Any]]:
    """Return what the middleware sends, or `reached` with the query that came through."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"type": "reached", "query": scope["query_string"]})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await AccessMiddleware(app, access)(asked, receive, send)
    return sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "masked"),
    [
        (f"token={TOKEN}", b"token=****"),
        (f"since=A&token={TOKEN}&types=metrics", b"since=A&token=****&types=metrics"),
        (f"token={TOKEN}&token={TOKEN}", b"token=****&token=****"),
        ("no_token=x", b"no_token=x"),
    ],
)
async def test_a_token_in_the_query_goes_no_further(query: str, masked: bytes) -> None:
    """Servers log the path of a WebSocket with its query."""
    shown = query if TOKEN in query else f"{query}&token={TOKEN}"

    (reached,) = await answered(scope(subprotocols=[], query=shown), Access(TOKEN))

    assert reached["query"].removesuffix(b"&token=****") == masked.removesuffix(b"&token=****")
    assert TOKEN.encode() not in reached["query"]


@pytest.mark.anyio
async def test_a_refused_request_gets_the_envelope() -> None:
    start, body = await answered(scope(), Access(TOKEN))

    assert start["status"] == 401
    assert_valid("ErrorResponse", json.loads(body["body"]))


@pytest.mark.anyio
async def test_a_refused_handshake_gets_it_too() -> None:
    start, body = await answered(scope(subprotocols=[]), Access(TOKEN))

    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert_valid("ErrorResponse", json.loads(body["body"]))


@pytest.mark.anyio
async def test_where_a_server_cannot_answer_a_handshake_it_is_closed() -> None:
    asked = scope(subprotocols=[]) | {"extensions": {}}

    assert await answered(asked, Access(TOKEN)) == [
        {"type": "websocket.close", "code": 1008, "reason": "invalid_admin_token"}
    ]


def test_no_secret_is_in_a_repr() -> None:
    assert TOKEN not in repr(Access(TOKEN))
