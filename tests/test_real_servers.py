"""A relay with its models on real servers: pytest -m real tests/test_real_servers.py (docs/serving.md).

RELAYLAB_STUDENT_URL and RELAYLAB_TEACHER_URL are the addresses (``URL`` or ``URL#model``), in float32. What they serve
is ``relay`` and ``teacher``, or the folders in RELAYLAB_STUDENT and RELAYLAB_TEACHER. vLLM and llama.cpp were tried.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import pytest

from relaylab.relay.pair import Pair, load_pair
from relaylab.tasks.suites import ALL_SUITES, problem
from relaylab.trace import Trace

URLS = "RELAYLAB_STUDENT_URL", "RELAYLAB_TEACHER_URL"
NAMES = os.environ.get("RELAYLAB_STUDENT", "relay"), os.environ.get("RELAYLAB_TEACHER", "teacher")
QUESTIONS = [problem(suite, i) for i in range(6) for suite in ALL_SUITES]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all(url in os.environ for url in URLS),
        reason=f"set {' and '.join(URLS)} to running servers (benchmarks/servers.py says how to start them)",
    ),
]


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """The same pair in this process, on two servers, and with either model on its server."""
    local = load_pair(*NAMES)
    student, teacher = ({"tokenizer": name} for name in NAMES)
    both = load_pair(*(os.environ[url] for url in URLS), student_options=student, teacher_options=teacher)
    mixed = {"student": Pair(both.student, local.teacher, both.defaults)}
    return {"local": local, "both": both, "teacher": Pair(local.student, both.teacher, local.defaults)} | mixed


def content(trace: Trace) -> dict[str, Any]:
    """What must be equal."""
    calls = [asdict(c) | {"latency": None, "teacher": None} for c in trace.calls]
    return {"ids": trace.completion_ids, "source": trace.source, "calls": calls, "stop": trace.stop}


@pytest.mark.parametrize("where", ["both", "student", "teacher"])
@pytest.mark.parametrize("options", [{}, {"forbid_calls": True}, {"call_end": "tokens", "max_tokens": 40}], ids=str)
def test_greedy_answers_are_those_of_this_process(pairs, where, options):
    expected, made = (pairs[name].decode(QUESTIONS, progress=False, **options) for name in ("local", where))
    assert [content(t) for t in made] == [content(t) for t in expected]
    if not options:
        assert sum(bool(t.answered) for t in expected) >= 20, "the student calls"


def test_sampled_answers_are_valid_and_repeatable(pairs):
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "progress": False}
    made = [pairs["both"].decode(QUESTIONS, seed=seed, **options) for seed in (3, 3, 4)]
    for trace in made[0]:
        trace.check()
        assert trace.stop in ("end", "teacher_end", "length")
    assert [content(t) for t in made[0]] == [content(t) for t in made[1]]
    assert [content(t) for t in made[0]] != [content(t) for t in made[2]]
    for trace in pairs["both"].decode(QUESTIONS, seed=3, forbid_calls=True, **options):
        assert "<call" not in trace.text


def test_log_probabilities_are_those_of_this_process(pairs):
    local, remote = (pairs[name].decode(QUESTIONS, record=True, progress=False) for name in ("local", "student"))
    for a, b in zip(local, remote, strict=True):
        for source, left, right in zip(a.source, a.logprobs, b.logprobs, strict=True):
            # llama.cpp has none of the tokens of a stop string, which ends a command.
            hidden = source == "t" or (source == "c" and right is None)
            assert right is None if hidden else left == pytest.approx(right, abs=1e-3)
