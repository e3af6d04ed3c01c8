"""What holds for all tests. These variables must stand before torch and transformers are imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from misbehaving_server import MisbehavingServer

# No test waits for a network: what would ask a hub fails at once, and says so.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: threads within them would only fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.name != "posix" and item.get_closest_marker("posix"):
        pytest.skip("Windows has no such signals")


settings.register_profile("relaylab", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("relaylab")


@pytest.fixture
def impatient(monkeypatch) -> Iterator[None]:
    """A short limit for a grade, so that hostile answers cost the tests less. Results of other limits are forgotten."""
    from relaylab.tasks import compare, verifier

    monkeypatch.setattr(verifier, "CPU_SECONDS", 0.25)
    caches = verifier.ask_math_verify, compare._expression
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def misbehaving_server(monkeypatch) -> Iterator[MisbehavingServer]:
    """An API server of our own for faults of every kind; its dialect and script are set on it. Retries are quick."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    server = MisbehavingServer()
    yield server
    server.stop()
