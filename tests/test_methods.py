"""Methods of the field on the loop: each against a slow reference that keeps no cache, then in other batches, resumed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference import slow_lines

from relaylab.engine.load import load_engine
from relaylab.evaluation.cost import hand_offs, usage
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.systems import System, system
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces

METHODS = {
    "glimp:threshold=0.4": {"unsure": 0.4},
    "offload:threshold=1.2": {"unsure": 1.2, "call_end": "answer"},
    "specreason:threshold=0.2": {"surprise": 0.2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    chosen = problems("tiles", 2) + problems("savings", 1)
    folder = tmp_path_factory.mktemp("run")
    return EvalRun(ModelCache(), chosen, folder, RelayConfig(max_tokens=90), batch_size=3, progress=False)


def timeless(traces):
    return [replace(t, calls=[replace(c, latency=None) for c in t.calls]) for t in traces]


@pytest.mark.parametrize("text", METHODS)
def test_a_method_equals_its_slow_reference(run, text):
    student, teacher = run.models.engine("student"), run.models.teacher.engine
    traces = run.traces(system(text))
    slow = [
        slow_lines(student.model, teacher.model, student.tokenizer, t.prompt_ids, end_ids=student.end_ids,
                   max_tokens=90, **METHODS[text])
        for t in traces
    ]  # fmt: skip
    assert [(t.completion_ids, t.source, t.stop) for t in traces] == [(s.ids, s.source, s.stop) for s in slow]
    for trace, s in zip(traces, slow):
        assert [(c.start, c.end, c.delivered) for c in trace.calls] == s.calls
        assert [(c.start, "".join(c.withdrawn)) for c in trace.calls if c.withdrawn] == s.withdrawn
    calls = [c for t in traces for c in t.calls]
    assert any(c.delivered for c in calls), "the teacher writes somewhere"
    assert any("s" in t.source for t in traces)


@pytest.mark.parametrize("text", METHODS)
def test_a_method_in_another_batch_or_resumed_is_the_same(run, tmp_path, text):
    traces = run.traces(system(text))
    other = replace(run, folder=tmp_path, batch_size=1, _done={})
    assert timeless(other.traces(system(text))) == timeless(traces)
    path = other.path(system(text))
    path.write_bytes(path.read_bytes()[:-100])  # torn
    assert timeless(replace(other, _done={}).traces(system(text))) == timeless(traces)
    assert len(list(read_traces(path))) == len(traces)
