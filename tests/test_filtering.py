"""The data filter: what a teacher is asked, what counts as passed, and files that go on where they stopped."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import asdict, replace
from functools import partial
from itertools import chain

import pytest

from relaylab.engine.load import load_engine, resolve
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import problem_seed
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import Problem, problems
from relaylab.training import data_filter as filtering
from relaylab.training.data_filter import Rate, keep, load_rates

pass_rates = partial(filtering.pass_rates, progress=False)
PROBLEMS = [*problems("savings", 3), *problems("depot", 2), Problem("mine-ü", "mine", "Half of\u2028one?", "1/2", "?")]
RIGHT = dict(zip((p.id for p in PROBLEMS), (10, 5, 4, 0, 1, 6)))  # of ten
DOWN = TeacherOutput("", "error", error="the server is on fire")


class Pupil(ScriptedTeacher):
    """Solves the first so many samples of each problem, which it tells apart by their seeds; notes what it is asked.

    down: (id, number of the sample) for which it fails. dies: after so many calls it is interrupted.
    """

    def __init__(self, right=RIGHT, *, seed=0, down=(), dies=None, asked=PROBLEMS, **attributes):
        super().__init__(self.say)
        self.right, self.down, self.dies = right, set(down), dies
        self.known = {problem_seed(seed, f"{p.id}/{k}"): (p, k) for p in asked for k in range(20)}
        self.calls, self.released = [], []
        vars(self).update(attributes)

    def submit(self, views):
        if len(self.calls) == self.dies:
            raise KeyboardInterrupt
        self.calls.append([(v, v.messages, self.known[v.seed], v.n) for v in views])
        super().submit(views)

    def release(self, views):
        self.released += views

    def say(self, view):
        p, k = self.known[view.seed]
        said = f"So it is \\boxed{{{p.answer if k < self.right[p.id] else 0}}}"
        return DOWN if (p.id, k) in self.down else TeacherOutput(said, "stop" if k % 2 else "length")

    @property
    def ids(self) -> list[list[str]]:
        """The problems of each call."""
        return [list(dict.fromkeys(p.id for _, _, (p, _), _ in call)) for call in self.calls]


def test_rates_are_exact_and_half_is_enough(tmp_path):
    out = tmp_path / "deep" / "rates.jsonl"
    rates = pass_rates(Pupil(), PROBLEMS, out)
    assert rates == [Rate(p, RIGHT[p.id], 10) for p in PROBLEMS]
    assert [r.rate for r in rates] == [1.0, 0.5, 0.4, 0.0, 0.1, 0.6]
    assert keep(rates) == [PROBLEMS[i] for i in (0, 1, 5)]
    assert load_rates(out) == rates  # the problems, too, are what went in
    assert keep(load_rates(out), 0.1) == [PROBLEMS[i] for i in (0, 1, 2, 4, 5)]  # another threshold, the same file
    assert (len(keep(rates, 0)), len(keep(rates, 0.51)), keep(rates, 1)) == (6, 2, PROBLEMS[:1])
    for odd in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"threshold is .* from 0 to 1"):
            keep(rates, odd)
    _, first, *_ = map(json.loads, out.read_text().splitlines())
    written = first | {"history": []}  # left out of the file where there is none
    assert written == json.loads(json.dumps(asdict(PROBLEMS[0]))) | dict(passed=10, samples=10, failed=0)
    assert "history" not in first


def test_what_a_teacher_is_asked(tmp_path):
    teacher = Pupil()
    for name, suffix in (("a", ""), ("b", "Put the answer into a box.")):
        pass_rates(teacher, PROBLEMS, tmp_path / name, samples=4, max_tokens=77, prompt_suffix=suffix, batch_size=11)
    assert teacher.ids == [[p.id for p in PROBLEMS[i : i + 2]] for i in (0, 2, 4)] * 2  # 8 of 11: whole problems only
    plain, suffixed = (list(chain(*calls)) for calls in (teacher.calls[:3], teacher.calls[3:]))
    assert [(p, k) for _, _, (p, k), _ in plain] == [(p, k) for p in PROBLEMS for k in range(4)]
    assert {n for *_, n in plain + suffixed} == {77}
    assert all(messages == [{"role": "user", "content": p.question}] for _, messages, (p, _), _ in plain)
    ends = {m[-1]["content"].removeprefix(p.question) for _, m, (p, _), _ in suffixed}
    assert ends == {"\nPut the answer into a box."}
    views = [view for view, *_ in plain + suffixed]
    assert len(set(views)) == 48
    assert teacher.released == views
    for size, calls in ((1, 6), (4, 6), (12, 2), (1000, 1)):
        one = Pupil()
        pass_rates(one, PROBLEMS, tmp_path / f"{size}", samples=4, batch_size=size)
        assert len(one.calls) == calls


def test_views_are_released_when_a_teacher_breaks(tmp_path):
    class Breaks(Pupil):
        def say(self, view):
            raise KeyboardInterrupt

    teacher = Breaks()
    with pytest.raises(KeyboardInterrupt):
        pass_rates(teacher, PROBLEMS[:1], tmp_path / "r", samples=3)
    assert teacher.released == [view for view, *_ in teacher.calls[0]]
    assert len(teacher.released) == 3


@pytest.mark.parametrize("calls", range(6))
@pytest.mark.parametrize("torn", [b"", b'{"id":"savings', b"\xff" * 100_000], ids=["clean", "torn", "long"])
def test_interrupted_it_goes_on_to_the_same_file(tmp_path, calls, torn):
    pass_rates(Pupil(), PROBLEMS, tmp_path / "whole", batch_size=1)
    out = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        pass_rates(Pupil(dies=calls), PROBLEMS, out, batch_size=1)
    assert [r.problem for r in load_rates(out)] == PROBLEMS[:calls]  # each was flushed
    with open(out, "ab") as file:
        file.write(torn)
    assert len(load_rates(out)) == calls
    second = Pupil()
    assert pass_rates(second, PROBLEMS, out, batch_size=20) == load_rates(tmp_path / "whole")
    assert list(chain(*second.ids)) == [p.id for p in PROBLEMS[calls:]]
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    third = Pupil()
    assert [r.problem.id for r in pass_rates(third, PROBLEMS[::-1], out)] == [p.id for p in PROBLEMS[::-1]]
    assert not third.calls


def test_what_is_done_is_in_the_file_before_more_is_asked(tmp_path):
    out, had = tmp_path / "r", []

    class Watching(Pupil):
        def submit(self, views):
            had.append(len(load_rates(out)))
            super().submit(views)

    pass_rates(Watching(), PROBLEMS, out, batch_size=20)
    assert had == [0, 2, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_filter_after_its_batch(tmp_path, number):
    class Stopped(Pupil):
        def submit(self, views):
            super().submit(views)
            if len(self.calls) == 2:
                signal.raise_signal(number)

    first, out, before = Stopped(), tmp_path / "r", signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        pass_rates(first, PROBLEMS, out, batch_size=20)
    assert len(first.calls) == 2
    assert load_rates(out) == pass_rates(Pupil(), PROBLEMS, tmp_path / "whole", batch_size=20)[:4]
    assert signal.getsignal(number) is before


def test_a_file_cut_anywhere_is_made_whole(tmp_path):
    out = tmp_path / "r"
    rates = pass_rates(Pupil(), PROBLEMS[:2], out)
    whole = out.read_bytes()
    for end in (*range(0, len(whole), 5), len(whole) - 1):
        out.write_bytes(whole[:end])
        assert pass_rates(Pupil(), PROBLEMS[:2], out) == rates
        assert out.read_bytes() == whole


def test_a_longer_list_adds_to_the_file_and_a_shorter_one_leaves_it(tmp_path):
    out = tmp_path / "r"
    pass_rates(Pupil(), PROBLEMS[:2], out)
    more = Pupil()
    pass_rates(more, PROBLEMS[1:], out)
    assert more.ids == [[p.id for p in PROBLEMS[2:]]]
    before = out.read_bytes()
    assert pass_rates(Pupil(dies=0), PROBLEMS[3:4], out) == [Rate(PROBLEMS[3], 0, 10)]
    assert out.read_bytes() == before
    assert load_rates(out) == [Rate(p, RIGHT[p.id], 10) for p in PROBLEMS]


def test_shards_are_taken_in(tmp_path):
    out, rates = tmp_path / "r.jsonl", [Rate(p, RIGHT[p.id], 10) for p in PROBLEMS]
    pass_rates(Pupil(), PROBLEMS[4:5], out)
    assert pass_rates(Pupil(), PROBLEMS, out, shard="1/2") == rates[::2]
    assert pass_rates(Pupil(), PROBLEMS, out, shard="2/2") == rates[1::2]
    assert load_rates(tmp_path / "r.2-of-2.jsonl") == rates[1::2]
    assert pass_rates(Pupil(dies=0), PROBLEMS, out) == rates
    assert {r.problem.id for r in load_rates(out)} == set(RIGHT)
    with pytest.raises(ValueError, match="another configuration: samples was 10, is 3"):
        pass_rates(Pupil(), PROBLEMS, out, samples=3)


def test_failures_are_in_no_rate_and_a_problem_without_any_answer_is_asked_again(tmp_path):
    out, (a, b, c, *_) = tmp_path / "r", PROBLEMS
    down = [(a.id, 0), (a.id, 9), *((p.id, k) for p in (b, c) for k in range(10))]
    with pytest.warns(UserWarning, match="22 of 60 samples failed .*: the server is on fire$"):
        rates = pass_rates(Pupil(down=down), PROBLEMS, out)
    assert rates[:3] == [Rate(a, 8, 8, 2), Rate(b, 0, 0, 10), Rate(c, 0, 0, 10)]
    assert [r.rate for r in rates[:3]] == [1.0, None, None]
    assert [p.id for p in keep(rates, 0)] == [p.id for p in PROBLEMS if p not in (b, c)]
    assert load_rates(out) == rates
    again = Pupil()
    assert pass_rates(again, [a, b], out) == [rates[0], Rate(b, 5, 10)]  # c is not asked for and keeps its line
    assert again.ids == [[b.id]]
    assert {r.problem.id: r for r in load_rates(out)} == {r.problem.id: r for r in rates} | {b.id: Rate(b, 5, 10)}
    assert len(out.read_bytes().splitlines()) == 7
    assert pass_rates(Pupil(), PROBLEMS, out)[2] == Rate(c, 4, 10)


def test_text_of_a_failed_sample_is_not_graded(tmp_path):
    right = f"\\boxed{{{PROBLEMS[0].answer}}}"
    teacher = ScriptedTeacher([replace(DOWN, text=right), TeacherOutput("", "stop"), right])
    with pytest.warns(UserWarning, match="1 of 3"):
        assert pass_rates(teacher, PROBLEMS[:1], tmp_path / "r", samples=3) == [Rate(PROBLEMS[0], 1, 2, 1)]
    greedy = Pupil(temperature=0.0)
    assert pass_rates(greedy, PROBLEMS[:1], tmp_path / "one", samples=1) == [Rate(PROBLEMS[0], 1, 1)]


@pytest.mark.parametrize(
    ("teacher", "options", "complaint"),
    [
        (Pupil(temperature=0.0), {}, "'script' is greedy: 10 equal answers are no pass rate; give it a temperature"),
        (NoTeacher(), {}, "no teacher to filter with; load one"),
        (Pupil(), dict(problems=[]), "no problems"),
        (Pupil(), dict(problems=[*PROBLEMS, PROBLEMS[1]]), "'savings-test-0-1' comes twice"),
        (Pupil(), dict(samples=0), "samples is 0; it must be at least 1"),
        (Pupil(), dict(max_tokens=0), "max_tokens is 0"),
        (Pupil(), dict(batch_size=0), "batch_size is 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(tmp_path, teacher, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        pass_rates(teacher, **dict(problems=PROBLEMS, out=tmp_path / "r") | options)
    assert not getattr(teacher, "calls", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "attributes"),
    [
        (dict(samples=11), {}), (dict(max_tokens=100), {}), (dict(prompt_suffix="Think."), {}), (dict(seed=1), {}),
        ({}, dict(name="other")), ({}, dict(fingerprint="f")), ({}, dict(temperature=0.7)), ({}, dict(top_p=0.9)),
        ({}, dict(top_k=5)), ({}, dict(extra_body=dict(top_p=0.8))),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_of_other_terms_is_refused(tmp_path, options, attributes):
    out = tmp_path / "r"
    pass_rates(Pupil(temperature=1.0), PROBLEMS[:2], out)
    before = out.read_bytes()
    name, value = next(iter((attributes.get("extra_body") or options | attributes).items()))
    name = "teacher" if name == "name" else name
    teacher = Pupil(**dict(temperature=1.0, dies=0) | attributes)
    with pytest.raises(
        ValueError, match=rf'r was made with another configuration: (.*; )?{name} was .*, is "?{value}"?; nothing'
    ):
        pass_rates(teacher, PROBLEMS, out, **options)
    assert out.read_bytes() == before
    assert not teacher.calls


@pytest.mark.parametrize(
    ("name", "value"),
    [("question", "7"), ("answer", "7"), ("kind", "number"), ("unit", "m"), ("tolerance", 10.0)],
)
def test_another_problem_under_the_same_id_is_refused(tmp_path, name, value):
    out = tmp_path / "r"
    pass_rates(Pupil(), PROBLEMS[:2], out)
    with pytest.raises(ValueError, match=f"another {name} under the id 'savings-test-0-1'"):
        pass_rates(Pupil(), [PROBLEMS[0], replace(PROBLEMS[1], **{name: value})], out)


def test_what_does_not_matter_to_a_rate_may_change(tmp_path):
    out, changed = tmp_path / "r", replace(PROBLEMS[1], level="brutal", steps=())
    pass_rates(Pupil(), PROBLEMS[:2], out)
    assert pass_rates(Pupil(dies=0), [changed], out) == [Rate(changed, 5, 10)]
    assert load_rates(out) == [Rate(PROBLEMS[0], 10, 10), Rate(changed, 5, 10)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda lines: lines[1:], "no file of pass rates"),
        (lambda lines: [b'{"version":1,"prompt":"a trace","terms":{}}\n'], "no file of pass rates"),
        (lambda lines: [b"my thesis, without a line break"], "no file of pass rates"),
        (lambda lines: [lines[0].replace(b'"version":1,', b'"version":2,'), *lines[1:]], "version 1"),
        (lambda lines: [lines[0].replace(b"}", b""), *lines[1:]], "line 1: not a record"),
        (lambda lines: [lines[0], b"[]\n", *lines[1:]], "line 2: not a record"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"passed"', b'"past"')], r"line 3: not a record .*passed"),
        (lambda lines: [*lines, b"{}\n"], "line 4: not a record"),
    ],
)
def test_other_files_and_broken_lines_are_named_and_left_alone(tmp_path, change, complaint):
    out = tmp_path / "r.jsonl"
    pass_rates(Pupil(), PROBLEMS[:2], out)
    out.write_bytes(b"".join(change(out.read_bytes().splitlines(keepends=True))))
    before = out.read_bytes()
    for read in (load_rates, lambda path: pass_rates(Pupil(), PROBLEMS, path)):
        with pytest.raises(ValueError, match=rf"r\.jsonl.*{complaint}"):
            read(out)
    assert out.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        load_rates(tmp_path / "none")


# Real teachers --------------------------------------------------------------------------------------------------------


def test_the_embedded_teacher_passes_what_is_easy_and_not_what_is_beyond(tmp_path):
    teacher = LocalTeacher(load_engine("teacher"), temperature=1.0)
    asked = [*problems("savings", 3), *problems("galaxy", 3)]
    rates = pass_rates(teacher, asked, tmp_path / "r", samples=4, max_tokens=160)
    assert all(r.samples == 4 for r in rates)
    assert sum(r.passed for r in rates[:3]) >= 11
    assert sum(r.passed for r in rates[3:]) <= 1
    assert keep(rates) == asked[:3]
    assert not teacher.engine.slots


def test_the_seed_decides_and_not_the_batch(tmp_path):
    engine, asked = load_engine("student"), problems("convoy", 6)  # which the student passes now and then

    def measured(name, **options):
        pass_rates(LocalTeacher(engine, temperature=1.0), asked, tmp_path / name, samples=6, max_tokens=160, **options)
        return (tmp_path / name).read_bytes()

    first = measured("a")
    assert measured("b") == measured("c", batch_size=6) == measured("d", batch_size=13) == first
    assert len({r.passed for r in load_rates(tmp_path / "a")}) > 1
    measured("e", seed=1)
    assert [r.passed for r in load_rates(tmp_path / "e")] != [r.passed for r in load_rates(tmp_path / "a")]


def test_rates_are_of_the_teachers_weights_at_hand(tmp_path):
    mine, asked = tmp_path / "mine", problems("savings", 1)
    shutil.copytree(resolve("student"), mine)

    def measured():
        teacher = LocalTeacher(load_engine(str(mine)), temperature=1.0)
        return pass_rates(teacher, asked, tmp_path / "r", samples=1, max_tokens=8)

    assert measured() == measured()
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x3f")
    with pytest.raises(ValueError, match="r was made with another configuration: teacher_weights was"):
        measured()
