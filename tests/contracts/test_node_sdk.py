"""
The official Node SDK, in the major versions that are in use, as a caller.

`tests/node` holds the packages' exact versions and a script that reads streams. The packages are
installed there once, by npm; where there is no npm or no registry these tests are skipped.
"""

import asyncio
import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cut_streams import TEXT, Cut, telling_cuts, tireless
from harness import Harness, Start, chain

from sentinel_proxy.config import TimeoutsConfig
from sentinel_proxy.testing import FaultyUpstream, Hang, Pause, openai_stream, sse_stream

pytestmark = pytest.mark.anyio

NODE = Path(__file__).parents[1] / "node"
MAJORS = sorted(json.loads((NODE / "package.json").read_bytes())["dependencies"])
INSTALL_SECONDS = 180


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """Install what package.json names, unless it is there."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no Node.js on this machine")
    with (NODE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, and one of them is enough
        if all((NODE / "node_modules" / name / "package.json").exists() for name in MAJORS):
            return
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode != 0:
            pytest.skip(f"npm could not install the Node SDK: {done.stderr.strip()[-200:]}")


async def heard_by(package: str, harness: Harness, users: list[str]) -> dict[str, Any]:
    """Let one Node process read a stream for each of *users*; return what it heard of each."""
    jobs = {"package": package, "baseURL": f"{harness.url}/v1", "users": users}
    node = await asyncio.create_subprocess_exec(
        "node",
        "read.mjs",
        cwd=NODE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await node.communicate(json.dumps(jobs).encode())
    assert node.returncode == 0, errors.decode()
    heard: dict[str, Any] = json.loads(output)
    return heard


@pytest.mark.parametrize("package", MAJORS)
async def test_a_part_of_an_answer_is_never_taken_for_the_whole(
    start: Start, primary: FaultyUpstream, package: str
) -> None:
    """D01, D02, around every boundary."""
    harness = await start(tireless(primary, None))
    cuts = {cut.name: cut for cut in telling_cuts()}

    heard = await heard_by(package, harness, list(cuts))

    assert heard.keys() == cuts.keys()
    for name, cut in cuts.items():
        assert_honest(cut, **heard[name])


def assert_honest(cut: Cut, text: str, error: str, code: str | None) -> None:
    if cut.complete:
        assert (text, error) == (TEXT, ""), cut.name
    else:
        assert error in ("APIError", "InternalServerError"), cut.name
        assert TEXT.startswith(text), cut.name
        assert code is not None, cut.name


@pytest.mark.parametrize("package", MAJORS)
async def test_with_a_fallback_the_text_arrives_whole_and_once(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, package: str
) -> None:
    """D06, around every boundary; the marker of the seam disturbs nobody."""
    harness = await start(tireless(primary, backup))
    names = [cut.name for cut in telling_cuts()]

    heard = await heard_by(package, harness, names)

    assert heard == {name: {"text": TEXT, "error": "", "code": None} for name in names}


@pytest.mark.parametrize("package", MAJORS)
async def test_comments_that_keep_a_stream_warm_disturb_nobody(
    start: Start, primary: FaultyUpstream, package: str
) -> None:
    """C06, C07: heartbeats before an answer, and before an error in place of one."""
    acts = {
        "answered": [Pause(0.3), *openai_stream(["One ", "two."])],
        "failed": [*sse_stream([])[:1], Hang()],
    }
    primary.always(lambda request: acts[request.json()["user"]])
    timeouts = TimeoutsConfig(first_token=0.5, header_hold=0.05, heartbeat=0.05)
    harness = await start(chain(primary, timeouts=timeouts))

    heard = await heard_by(package, harness, list(acts))

    assert heard == {
        "answered": {"text": "One two.", "error": "", "code": None},
        "failed": {"text": "", "error": "APIError", "code": "upstream_timeout"},
    }
