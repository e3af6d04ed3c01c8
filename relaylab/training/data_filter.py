"""The data filter of stage 2: the problems that the teacher solves often enough for a call to help (method: stage 2).

The paper's filter asks 10 times at temperature 1 and keeps pass rates from 0.5 on. The authors' released code kept what
passed more than 0 of 16 times: ``keep(rates, 1 / 16)`` of rates with ``samples=16``. Sampling is what costs, so a file
keeps the rates of all problems, and any threshold can be applied later. Its first line is the configuration.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from relaylab import files
from relaylab.engine.load import fingerprint_weights
from relaylab.relay.pair import problem_seed, request_fields
from relaylab.relay.teachers import NamedTeachers, NoTeacher, Teacher, TeacherOutput, TeacherView, complete
from relaylab.stopping import stop_signals
from relaylab.tasks.grading import grade_problem
from relaylab.tasks.suites import Problem, Step

HEAD = {"kind": "pass rates", "version": 1}


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a teacher solved a problem.

    >>> Rate(Problem("a", "mine", "2+2?", "4"), passed=3, samples=4, failed=1).rate
    0.75
    """

    problem: Problem
    passed: int  # right answers
    samples: int  # answers
    failed: int = 0  # samples with an error instead of an answer; they are not among ``samples``

    @property
    def rate(self) -> float | None:
        """The pass rate, 0 to 1; None without an answer."""
        return self.passed / self.samples if self.samples else None


def pass_rates(
    teacher: Teacher,
    problems: Sequence[Problem],
    out: str | os.PathLike,
    *,
    samples: int = 10,
    max_tokens: int = 512,
    prompt_suffix: str = "",
    seed: int = 0,
    batch_size: int = 128,
    shard: str | None = None,
    progress: bool = True,
) -> list[Rate]:
    r"""How often ``teacher``, sampling, solves each problem (method: stage 2); in the problems' order.

    Interrupted, the same call goes on where it stopped, and asks again for problems without any answer. A warning says
    how many samples failed, and why the last one did.

    Args:
        teacher: at a temperature, unless ``samples`` is 1.
        problems: with ids that differ.
        out: the file of rates; it gets every problem as soon as it is done.
        samples: answers per problem, each with a seed of its own.
        max_tokens: the teacher's own, of an answer. One that is cut there is graded all the same.
        prompt_suffix: put after each question, on a line of its own.
        seed: of the answers.
        batch_size: answers at a time, of whole problems.
        shard: ``i/n``: only this part of the problems, into a file beside ``out``. Without it, such files are taken in.
        progress: show a bar.

    Raises:
        ValueError: for what cannot be sampled, and where ``out`` is another file, has another configuration, or another
            question or answer under the same id.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the batch under way is in the file.

    >>> import pathlib, tempfile
    >>> from relaylab.relay.teachers import ScriptedTeacher
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "rates.jsonl"
    >>> teacher = ScriptedTeacher([r"\boxed{4}", r"\boxed{5}"])
    >>> [r.rate for r in pass_rates(teacher, [Problem("a", "mine", "2+2?", "4")], out, progress=False)]
    [0.5]
    """
    _check(teacher, problems, samples=samples, max_tokens=max_tokens, batch_size=batch_size)
    problems, path = files.shard(problems, shard), files.shard_path(out, shard)
    sampling: dict[str, Any] = dict(samples=samples, max_tokens=max_tokens, prompt_suffix=prompt_suffix, seed=seed)
    fields = getattr(teacher, "extra_body", {})  # a server's top_p is a further field of its requests
    fields = {k: getattr(teacher, k, fields.get(k)) for k in ("fingerprint", "temperature", "top_p", "top_k")}
    engine, own_code = getattr(teacher, "engine", None), files.own_code(teacher)
    weights = engine and fingerprint_weights(engine)
    config = {"teacher": teacher.name, "teacher_weights": weights} | request_fields(teacher) | fields | sampling
    config |= {"own_code": own_code} if own_code else {}
    done = _resume(path, () if shard else files.shard_files(out), config, problems)
    todo, errors, size = [p for p in problems if p.id not in done], list[str](), max(1, batch_size // samples)
    bar = tqdm(total=len(problems), initial=len(done), desc="filtering", disable=not progress)
    with stop_signals("batch of problems") as stop, bar:
        for batch in (todo[i : i + size] for i in range(0, len(todo), size)):
            if stop.is_set():
                break
            answers = _sampled(teacher, batch, **sampling)
            with files.LineWriter(path) as writer:
                for problem, outputs in zip(batch, answers, strict=True):
                    texts = [o.text for o in outputs if o.finish_reason != "error"]
                    errors += [str(o.error) for o in outputs if o.finish_reason == "error"]
                    passed = sum(grade_problem(text, problem) for text in texts)
                    done[problem.id] = rate = Rate(problem, passed, len(texts), samples - len(texts))
                    writer.write_line(_line(rate))
                    bar.update()
    if errors:
        lost = f"{len(errors)} of {len(todo) * samples} samples failed and do not count"
        again = "the same call asks those problems again that have no answer at all"
        warnings.warn(f"{lost}; {again}; the last error was: {errors[-1]}", stacklevel=2)
    return [done[p.id] for p in problems]


def load_rates(path: str | os.PathLike) -> list[Rate]:
    """The rates of a file that ``pass_rates`` made, in its order; a torn last line is left out.

    Raises:
        ValueError: with file and line, for another kind of file or a broken line.
        OSError: for a file that it cannot read.
    """
    return _read(Path(path))[1]


def keep(rates: Sequence[Rate], threshold: float = 0.5) -> list[Problem]:
    """The problems with a pass rate of at least ``threshold``, 0 to 1, in their order (method: stage 2).

    A problem without any answer has no pass rate and is never among them.

    Raises:
        ValueError: for a threshold outside 0 to 1.

    >>> a, b = Problem("a", "mine", "2+2?", "4"), Problem("b", "mine", "47*83?", "3901")
    >>> [p.id for p in keep([Rate(a, 5, 10), Rate(b, 4, 10)])]
    ['a']
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; a pass rate is from 0 to 1")
    return [r.problem for r in rates if r.rate is not None and r.rate >= threshold]


def _check(teacher: Teacher, problems: Sequence[Problem], **numbers: int) -> None:
    if isinstance(teacher, NoTeacher):
        raise ValueError("there is no teacher to filter with; load one, or train on all problems")
    if isinstance(teacher, NamedTeachers):
        raise ValueError(
            f"a pass rate is that of one teacher, and there are {', '.join(teacher.names)}; filter with one"
        )
    if low := next((name for name, value in numbers.items() if value < 1), None):
        raise ValueError(f"{low} is {numbers[low]}; it must be at least 1")
    if numbers["samples"] > 1 and getattr(teacher, "temperature", None) == 0:
        reason = f"the teacher {teacher.name!r} is greedy: {numbers['samples']} equal answers are no pass rate"
        raise ValueError(f"{reason}; give it a temperature (the paper's is 1), or take samples=1")
    if not problems:
        raise ValueError("there are no problems to filter; give at least one")
    if twice := [name for name, count in Counter(p.id for p in problems).items() if count > 1]:
        raise ValueError(f"the problem {twice[0]!r} comes twice; ids must differ")


def _sampled(
    teacher: Teacher, problems: Sequence[Problem], *, samples: int, max_tokens: int, prompt_suffix: str, seed: int
) -> list[list[TeacherOutput]]:
    """The teacher's answers to some problems, all at a time."""
    views = [
        TeacherView(p.messages(prompt_suffix), n=max_tokens, seed=problem_seed(seed, f"{p.id}/{k}"))
        for p in problems
        for k in range(samples)
    ]
    try:
        outputs = complete(teacher, views)
    finally:
        teacher.release(views)
    return [outputs[i : i + samples] for i in range(0, len(outputs), samples)]


# The file -------------------------------------------------------------------------------------------------------------


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))


def _line(rate: Rate) -> str:
    problem = {k: v for k, v in asdict(rate.problem).items() if v or k != "history"}
    return _json(problem | {"passed": rate.passed, "samples": rate.samples, "failed": rate.failed})


def _parse(data: dict[str, Any]) -> Rate | dict[str, Any]:
    if "config" in data:  # the first line
        return data
    counts = [data.pop(name) for name in ("passed", "samples", "failed")]
    steps = tuple(Step(**step) for step in data.pop("steps"))
    return Rate(Problem(**data, steps=steps), *counts)


def _read(path: Path) -> tuple[dict[str, Any] | None, list[Rate]]:
    """The configuration and the rates of a file; None where its first line is torn."""
    begin = _json(HEAD)[:-1].encode()
    with open(path, "rb") as file:
        first = file.read(len(begin))
    if first != begin[: len(first)]:
        raise ValueError(f"{path} is no file of pass rates, version {HEAD['version']}; choose another file")
    records = list(files.read_lines(path, _parse))
    head = records[0] if records and isinstance(records[0], dict) else {}
    return head.get("config"), [rate for rate in records if isinstance(rate, Rate)]


def _resume(path: Path, parts: Sequence[Path], config: dict[str, Any], problems: Sequence[Problem]) -> dict[str, Rate]:
    """The rates that are done, by id. Afterwards the file has whole lines and no problem that is asked again."""
    by_id, kept = {p.id: p for p in problems}, dict[str, Rate]()
    for file in (path, *parts):
        before, rates = _read(file) if file.exists() else (None, [])
        if before is not None:
            files.check_config(file, before, config)
        for rate in rates:
            problem = by_id.get(rate.problem.id, rate.problem)
            for name in ("question", "answer", "history", "kind", "unit", "tolerance"):
                if getattr(rate.problem, name) != getattr(problem, name):
                    raise ValueError(f"{file} has another {name} under the id {problem.id!r}; choose another file")
            if rate.samples or problem.id not in by_id:
                kept.setdefault(problem.id, replace(rate, problem=problem))  # its other fields decide no rate
    lines = [_json(HEAD | {"config": config}), *map(_line, kept.values())]
    whole = "".join(f"{line}\n" for line in lines).encode()
    if not path.exists() or path.read_bytes() != whole:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, whole)
    return {name: rate for name, rate in kept.items() if name in by_id}
