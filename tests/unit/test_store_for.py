"""Which store is meant by `state.url`."""

import subprocess
import sys
from pathlib import Path

import pytest

from sentinel_proxy.config import StateConfig
from sentinel_proxy.stores import store_for
from sentinel_proxy.stores.embedded import EmbeddedStore
from sentinel_proxy.stores.redis import RedisStore
from sentinel_proxy.testing import FakeClock


def test_memory_needs_no_store() -> None:
    assert store_for(StateConfig(url="sqlite://"), FakeClock()) is None


def test_a_file_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    store = store_for(StateConfig(url=f"sqlite://{tmp_path}/state.db"), FakeClock())

    assert isinstance(store, EmbeddedStore)
    assert repr(store) == f"<EmbeddedStore {tmp_path}/state.db>"
    assert not store.shared


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_redis_is_shared_and_its_password_is_not_shown(scheme: str) -> None:
    store = store_for(StateConfig(url=f"{scheme}://me:a-password@redis:6379/0"), FakeClock())

    assert isinstance(store, RedisStore)
    assert store.shared
    assert "a-password" not in f"{store!r} {store} {vars(store)!r}"


def test_a_proxy_without_a_store_imports_neither_a_database_nor_a_client_of_one() -> None:
    """They would cost every start a tenth of a second, and memory for good."""
    program = (
        "import sys\n"
        "from sentinel_proxy import app\n"
        "from sentinel_proxy.config import Config\n"
        "app.Proxy(Config())\n"
        "print(*sorted({'redis', 'sqlite3'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
