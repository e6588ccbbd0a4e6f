"""What operators read about their faces is what the code does."""

import re
from pathlib import Path

import pytest
from admin_support import operations
from test_operator_docs import CODE, table

import sentinel_proxy
from sentinel_proxy.admin import live, routes
from sentinel_proxy.admin.broadcast import EVENT_TYPES, RESTARTING, TOO_SLOW, Pace
from sentinel_proxy.admin.schemas import SCHEMAS
from sentinel_proxy.server import MAX_MESSAGE_BYTES, PING_SECONDS

PACKAGE = Path(sentinel_proxy.__file__).parent
PAGE = PACKAGE.parent / "docs" / "admin.md"


def first_codes(header: str) -> list[str]:
    return [code for row in table("admin.md", header) for code in CODE.findall(row[0])]


def test_every_type_of_event_is_documented() -> None:
    assert first_codes("| `event_type` |") == list(EVENT_TYPES)


def test_every_code_is_documented_and_no_other() -> None:
    made = {"invalid_value", "proxy_draining"}  # the default of `queries`, and of `api.errors`
    for path in (PACKAGE / "admin").glob("*.py"):
        text = path.read_text()
        made |= set(re.findall(r'code="([a-z_]+)"', text)) | set(re.findall(r'"(unknown_parameter)"', text))

    assert set(first_codes("| code |")) == made


def test_every_way_to_be_closed_is_documented() -> None:
    ours = {RESTARTING.code, TOO_SLOW.code, live.ONLY_TALKS.code}
    of_the_server = {1009, 1011}

    assert {int(row[0]) for row in table("admin.md", "| closed with |")} == ours | of_the_server


def test_every_filter_of_incidents_is_documented() -> None:
    (incidents,) = (operation for path, _, operation in operations() if path == "/api/incidents")

    named = [parameter["name"] for parameter in incidents["parameters"]]
    assert sorted(first_codes("| parameter |")) == sorted(named)


def test_every_field_of_an_order_is_documented() -> None:
    assert first_codes("| field |") == list(SCHEMAS["Order"]["properties"])


@pytest.mark.parametrize(
    "words",
    [
        f"From 1 to {routes.MAX_INCIDENTS}; {routes.INCIDENTS} unless set",
        f"at most {routes.MAX_REASON_CHARS} characters",
        f"at most {routes.MAX_AUTHOR_CHARS} characters",
        f"{routes.MAX_ISOLATION_SECONDS / 86_400:g} days at most",
        f"within {routes.BODY_SECONDS:g} seconds",
        f"larger than {routes.MAX_BODY_BYTES // 1024} KiB",
        f"every {Pace().heartbeat_seconds:g} seconds",
        f"waited {Pace().stall_seconds:g} seconds",
        f"a ping for {PING_SECONDS:g} seconds",
        f"more than {MAX_MESSAGE_BYTES} bytes",
    ],
)
def test_every_number_is_the_codes(words: str) -> None:
    assert words in " ".join(PAGE.read_text().split())


def test_an_isolation_lasts_an_hour_unless_set() -> None:
    assert routes.ISOLATION_SECONDS == 3600
    assert "an hour unless set" in PAGE.read_text()


def test_every_described_face_is_named_on_the_page_or_in_the_api() -> None:
    known = PAGE.read_text() + (PAGE.parent / "api.md").read_text()

    assert [path for path, _, _ in operations() if path not in known] == []
