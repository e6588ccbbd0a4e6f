"""The dashboard's files as they are served; what they do in a browser is tests/browser's."""

import gzip
import re
from pathlib import Path

import httpx
import pytest
from harness import Harness, Start, chain

import sentinel_proxy
from sentinel_proxy.config import AdminConfig
from sentinel_proxy.testing import FaultyUpstream

pytestmark = pytest.mark.anyio

WEB = Path(sentinel_proxy.__file__).parent / "admin" / "web"
PARTS = sorted(path.name for path in WEB.iterdir() if path.name != "dashboard.html")


@pytest.fixture
async def proxy(start: Start, primary: FaultyUpstream) -> Harness:
    return await start(chain(primary, admin=AdminConfig.model_validate({"token": "t0ken"})))


async def test_the_page_is_served_without_the_token(proxy: Harness) -> None:
    reply = await proxy.client.get("/dashboard")

    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.content == (WEB / "dashboard.html").read_bytes()


@pytest.mark.parametrize("name", PARTS)
async def test_so_is_every_part_of_it(name: str, proxy: Harness) -> None:
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}

    reply = await proxy.client.get(f"/dashboard/{name}")

    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith(types[name.rpartition(".")[2]])
    assert reply.content == (WEB / name).read_bytes()


@pytest.mark.parametrize(
    "path", ["/dashboard/none.js", "/dashboard/dashboard.html", "/dashboard/..%2F__init__.py"]
)
async def test_there_is_nothing_else(path: str, proxy: Harness) -> None:
    reply = await proxy.client.get(path)

    assert reply.status_code in (401, 404)
    assert "error" in reply.json()


async def test_it_comes_compressed_where_that_is_understood(proxy: Harness) -> None:
    plain = await proxy.client.get("/dashboard/main.js", headers={"accept-encoding": "identity"})
    async with proxy.client.stream("GET", "/dashboard/main.js", headers={"accept-encoding": "gzip"}) as reply:
        raw = b"".join([part async for part in reply.aiter_raw()])

    assert "content-encoding" not in plain.headers
    assert reply.headers["content-encoding"] == "gzip"
    assert plain.headers["vary"] == reply.headers["vary"] == "accept-encoding"
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 2


async def test_nothing_but_its_own_files_may_run_in_it(proxy: Harness) -> None:
    reply = await proxy.client.get("/dashboard")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))

    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_script_or_style_inline_and_asks_nobody_else() -> None:
    page = (WEB / "dashboard.html").read_text()

    assert re.findall(r"\s(?:on\w+|style)=", page) == []
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style", page) == []
    assert [
        path.name for path in WEB.iterdir() if re.search(r"https?://(?!www\.w3\.org/)", path.read_text())
    ] == []


def test_every_part_is_used() -> None:
    texts = {path.name: path.read_text() for path in WEB.iterdir()}
    used = {name for name in PARTS for other, text in texts.items() if other != name and f"/{name}" in text}

    assert used == set(PARTS)


async def test_a_stranger_gets_neither_the_page_nor_its_parts_where_there_is_no_token(
    start: Start, primary: FaultyUpstream
) -> None:
    proxy = await start(chain(primary))
    stranger = {"x-forwarded-for": "203.0.113.9"}

    replies: list[httpx.Response] = [
        await proxy.client.get(path, headers=stranger) for path in ("/dashboard", "/dashboard/main.js")
    ]

    assert [reply.status_code for reply in replies] == [403, 403]
