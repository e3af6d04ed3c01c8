"""The data filter of stage 2: the problems that the teacher solves often enough for a call to help (method: stage 2).

The teacher answers every question 10 times at temperature 1; problems with a pass rate of at least 0.5 are kept. That
is the paper's filter, not that of the authors' released code, which kept what passed more than 0 of 16 times:
``keep(rates, 1 / 16)`` of rates with ``samples=16``.

Sampling is what costs, so the rates of all problems go into a file, and thresholds are for later. The file is JSON
Lines: first the terms, then one problem a line with all of its fields, so that it is a training set by itself.
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

from relaylab.relay.pair import problem_seed
from relaylab.relay.teachers import NoTeacher, Teacher, TeacherOutput, TeacherView, complete
from relaylab.tasks.answers import grade_problem
from relaylab.tasks.suites import Problem, Step

HEAD = {"kind": "pass rates", "version": 1}


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a teacher solved a problem: ``passed`` of ``samples`` answers (method: stage 2).

    ``failed`` counts the samples for which there was no answer but an error; they are not among ``samples``.

    >>> Rate(Problem("a", "mine", "2+2?", "4"), passed=3, samples=4, failed=1).rate
    0.75
    """

    problem: Problem
    passed: int
    samples: int
    failed: int = 0

    @property
    def rate(self) -> float | None:
        """The pass rate, 0 to 1; None where no sample was answered."""
        return self.passed / self.samples if self.samples else None


def pass_rates(
    teacher: Teacher,
    problems: Sequence[Problem],
    out: str | os.PathLike,
    *,
    samples: int = 10,
    max_tokens: int = 512,
    suffix: str = "",
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
) -> list[Rate]:
    r"""How often ``teacher``, sampling, solves each problem (method: stage 2); in the problems' order.

    samples: responses a problem, each with a seed of its own. max_tokens: the teacher's own, a response; one that is
    cut there is graded all the same. suffix: put behind each question, on a line of its own. batch_size: responses
    asked for at a time, of whole problems.

    ``out`` gets every problem as soon as it is done. Interrupted, the same call goes on where it stopped, and problems
    without any answer are asked again. A warning says how many samples failed, and why the last one did.

    >>> import pathlib, tempfile
    >>> from relaylab.relay.teachers import ScriptedTeacher
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "rates.jsonl"
    >>> teacher = ScriptedTeacher([r"\boxed{4}", r"\boxed{5}"])
    >>> [r.rate for r in pass_rates(teacher, [Problem("a", "mine", "2+2?", "4")], out, progress=False)]
    [0.5]

    Raises ValueError for a greedy teacher with several samples, for no teacher, no problems, an id that comes twice and
    numbers below 1; and where ``out`` is no such file, was made with other terms, or has another question or answer
    under the same id.
    """
    sampling = dict(samples=samples, max_tokens=max_tokens, suffix=suffix, seed=seed)
    _check(teacher, problems, samples=samples, max_tokens=max_tokens, batch_size=batch_size)
    told = getattr(teacher, "extra_body", {})  # a server's top_p is a further field of its requests
    told = {k: getattr(teacher, k, told.get(k)) for k in ("fingerprint", "temperature", "top_p", "top_k")}
    done = _resume(Path(out), {"teacher": teacher.name} | told | sampling, problems)
    todo, errors, size = [p for p in problems if p.id not in done], list[str](), max(1, batch_size // samples)
    bar = tqdm(total=len(problems), initial=len(done), desc="filtering", disable=not progress)
    with open(out, "ab") as file, bar:
        for batch in (todo[i : i + size] for i in range(0, len(todo), size)):
            for problem, said in zip(batch, _sampled(teacher, batch, **sampling), strict=True):
                answers = [c.text for c in said if c.finish_reason != "error"]
                errors += [str(c.error) for c in said if c.finish_reason == "error"]
                passed = sum(grade_problem(text, problem) for text in answers)
                done[problem.id] = rate = Rate(problem, passed, len(answers), samples - len(answers))
                file.write(_line(rate))
                file.flush()
                bar.update()
    if errors:
        lost = f"{len(errors)} of {len(todo) * samples} samples failed and do not count"
        again = "the same call asks those problems again that have no answer at all"
        warnings.warn(f"{lost}; {again}; the last error was: {errors[-1]}", stacklevel=2)
    return [done[p.id] for p in problems]


def load_rates(path: str | os.PathLike) -> list[Rate]:
    """The rates of a file that ``pass_rates`` made, in its order (method: stage 2); a torn last line is left out.

    >>> import pathlib, tempfile
    >>> from relaylab.relay.teachers import ScriptedTeacher
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "rates.jsonl"
    >>> rates = pass_rates(ScriptedTeacher(["4"]), [Problem("a", "mine", "2+2?", "4")], out, progress=False)
    >>> load_rates(out) == rates
    True

    Raises ValueError, with file and line, for another kind of file or a broken line; OSError for one it cannot read.
    """
    return _parsed(Path(path).read_bytes(), path)[1]


def keep(rates: Sequence[Rate], threshold: float = 0.5) -> list[Problem]:
    """The problems with a pass rate of at least ``threshold``, 0 to 1, in their order (method: stage 2).

    A problem without any answer has no pass rate and is never among them.

    >>> a, b = Problem("a", "mine", "2+2?", "4"), Problem("b", "mine", "47*83?", "3901")
    >>> [p.id for p in keep([Rate(a, 5, 10), Rate(b, 4, 10)])]
    ['a']

    Raises ValueError for a threshold outside 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; a pass rate is from 0 to 1")
    return [r.problem for r in rates if r.rate is not None and r.rate >= threshold]


def _check(teacher: Teacher, problems: Sequence[Problem], **numbers: int) -> None:
    if isinstance(teacher, NoTeacher):
        raise ValueError("there is no teacher to filter with; load one, or train on all problems")
    if low := next((name for name, value in numbers.items() if value < 1), None):
        raise ValueError(f"{low} is {numbers[low]}; it must be at least 1")
    if numbers["samples"] > 1 and getattr(teacher, "temperature", None) == 0:
        told = f"the teacher {teacher.name!r} is greedy: {numbers['samples']} equal answers are no pass rate"
        raise ValueError(f"{told}; give it a temperature (the paper's is 1), or take samples=1")
    if not problems:
        raise ValueError("there are no problems to filter; give at least one")
    if twice := [name for name, count in Counter(p.id for p in problems).items() if count > 1]:
        raise ValueError(f"the problem {twice[0]!r} comes twice; ids must differ")


def _sampled(
    teacher: Teacher, problems: Sequence[Problem], *, samples: int, max_tokens: int, suffix: str, seed: int
) -> list[list[TeacherOutput]]:
    """The teacher's responses to some problems, asked for in one call."""
    contexts = []
    for p in problems:
        messages = [{"role": "user", "content": p.prompt(suffix)}]
        for k in range(samples):
            contexts.append(TeacherView(messages, n=max_tokens, seed=problem_seed(seed, f"{p.id}/{k}")))
    try:
        said = complete(teacher, contexts)
    finally:
        teacher.release(contexts)
    return [said[i : i + samples] for i in range(0, len(said), samples)]


# The file -------------------------------------------------------------------------------------------------------------


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _line(rate: Rate) -> bytes:
    return _json(asdict(rate.problem) | {"passed": rate.passed, "samples": rate.samples, "failed": rate.failed})


def _rate(data: dict[str, Any]) -> Rate:
    counts = [data.pop(name) for name in ("passed", "samples", "failed")]
    steps = tuple(Step(**step) for step in data.pop("steps"))
    return Rate(Problem(**data, steps=steps), *counts)


def _parsed(data: bytes, path: str | os.PathLike) -> tuple[dict[str, Any], list[Rate]]:
    """The terms and the rates of a file's whole lines."""
    *lines, _torn = data.split(b"\n")
    if not (lines and data.startswith(_json(HEAD)[:-2])):
        raise ValueError(f"{path} is no file of pass rates, version {HEAD['version']}; choose another file")
    read: list[Any] = []
    try:
        for line in map(json.loads, lines):
            read.append(_rate(line) if read else line["terms"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}, line {len(read) + 1}: broken ({error!r}); remove it, or the file") from error
    return read[0], read[1:]


def _resume(path: Path, terms: dict[str, Any], problems: Sequence[Problem]) -> dict[str, Rate]:
    """The rates that are done, by id; the file afterwards is its terms and whole lines, without those to ask again."""
    header = _json(HEAD | {"terms": terms})
    old = path.read_bytes() if path.exists() else b""
    known, found, kept = {p.id: p for p in problems}, list[Rate](), dict[str, Rate]()
    if not header.startswith(old):  # else nothing stands behind the first line, which may be torn
        before, found = _parsed(old, path)
        if other := sorted(k for k in terms.keys() | before.keys() if terms.get(k) != before.get(k)):
            was, now = ({k: t.get(k) for k in other} for t in (before, terms))
            raise ValueError(f"{path} was made with {was}, this run has {now}; choose another file or remove it")
    for rate in found:
        asked = known.get(rate.problem.id, rate.problem)
        for name in ("question", "answer"):
            if getattr(rate.problem, name) != getattr(asked, name):
                raise ValueError(f"{path} has another {name} under the id {asked.id!r}; choose another file")
        if rate.samples or asked.id not in known:
            kept[asked.id] = replace(rate, problem=asked)  # what else of it has changed is of no matter to a rate
    if (whole := header + b"".join(map(_line, kept.values()))) != old:
        path.parent.mkdir(parents=True, exist_ok=True)
        rest = path.with_name(f"{path.name}.tmp")
        rest.write_bytes(whole)
        rest.replace(path)
    return {name: rate for name, rate in kept.items() if name in known}
