"""The live bench: ask the embedded suites' questions, or your own, of any student and teacher; watch, stop, compare.

    bench = Playground()
    bench  # in a notebook: the widget

Without a page the same methods do the same: ``bench.ask("...")``, ``bench.wait()``, ``bench.traces``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import traitlets as t

from relaylab.engine.engine import Engine
from relaylab.engine.load import embedded, load_engine
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair, graded, load_teacher
from relaylab.relay.relay import Stream
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import SUITES, Problem, level_of, problem
from relaylab.trace import Trace
from relaylab.views.live_view import LiveView, front_end

SETTINGS: dict[str, Any] = {
    "max_tokens": 256,
    "max_calls": None,
    "max_call_tokens": None,
    "temperature": 0.0,
    "seed": 0,
    "pace": 0.0,
}
WHOLE = ("max_tokens", "max_calls", "max_call_tokens", "seed")
OPTIONAL = ("max_calls", "max_call_tokens")


class Playground(LiveView):
    """Questions to pairs, their answers as they are written, and the last ``keep`` of them side by side.

    students and teachers: what there is to choose from, the first one being chosen: names as of ``load_engine`` and
    ``load_teacher``, or engines and teachers; all embedded ones by default. suites: where questions are picked from, of
    the test split. ``settings``: ``max_tokens``, ``max_calls`` and ``max_call_tokens`` as in ``RelayConfig``,
    ``temperature``, ``seed``, and ``pace``, tokens a second to slow it down to (0: as fast as it goes).

    >>> bench = Playground(max_tokens=60)
    >>> bench.ask(bench.pick("savings", 0)).wait()
    True
    >>> bench.traces[0].problem["suite"], len(bench.traces[0].source) <= 60
    ('savings', True)

    Raises ValueError for an unknown suite or setting, a setting out of its range, and where two students or two
    teachers have one name.
    """

    _esm, _css = front_end("bench").values()
    actions = (*LiveView.actions, "ask", "pick")
    nothing = "nothing has been asked yet"
    picked = t.Dict().tag(sync=True)

    def __init__(
        self,
        *,
        students: Sequence[str | Path | Engine] | None = None,
        teachers: Sequence[str | Teacher] | None = None,
        suites: Sequence[str] = SUITES,
        keep: int = 6,
        **settings: Any,
    ):
        names = sorted(embedded(), key=lambda name: (name not in ("relay", "teacher"), name))
        self._students = _named("student", students or [n for n in names if not n.startswith("teacher")])
        self._teachers = _named("teacher", teachers or [*(n for n in names if n.startswith("teacher")), "none"])
        self._suites = {suite: level_of(suite) for suite in suites}
        self._settings = _checked(SETTINGS | settings)
        self._next = dict.fromkeys(self._suites, 0)
        self._known: dict[str, Problem] = {}  # by question: those that were picked can be graded
        super().__init__(
            keep=keep,
            setup={
                "students": list(self._students),
                "teachers": list(self._teachers),
                "suites": [[suite, level] for suite, level in self._suites.items()],
                "settings": self._settings,
            },
        )
        if suites:
            self.pick(next((s for s, level in self._suites.items() if level == "hard"), suites[0]))

    def pick(self, suite: str, index: int | None = None) -> Problem:
        """The test problem of this number, by default the next one of its suite; shown as the question to ask."""
        if suite not in self._suites:
            raise ValueError(f"there is no suite {suite!r} here; there are {', '.join(self._suites)}")
        index = self._next[suite] if index is None else index
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(f"index is {index!r}; the problems of a suite are numbered from 0 on")
        self._next[suite] = index + 1
        found = problem(suite, index)
        self._known[found.question] = found
        self.picked = {"suite": suite, "index": index, "question": found.question, "answer": found.answer}
        return found

    def ask(
        self, question: str | Problem, *, student: str | None = None, teacher: str | None = None, **settings: Any
    ) -> Playground:
        """Begin to answer a question; ``settings`` are those of the bench, for this run. Returns the bench itself.

        A ``Problem``, and a question that was picked, is graded. Raises ValueError for an empty question, a name that
        is not among the choices, or a bad setting, and RuntimeError while another answer is being written.
        """
        task = question if isinstance(question, Problem) else self._known.get(question.strip())
        text = task.question if task else question.strip()
        if not text:
            raise ValueError("there is no question; type one, or pick one of a suite")
        student = _chosen("student", student, self._students)
        teacher = _chosen("teacher", teacher, self._teachers)
        used = _checked(self._settings | settings)
        config = RelayConfig(**{name: used[name] for name in ("max_tokens", "max_calls", "max_call_tokens")})

        def begin() -> Stream:
            pair = Pair(self._engine(student), self._teacher(teacher))
            relay = pair.relay(config=config, temperature=used["temperature"], record=True)
            return relay.stream([text], seeds=[used["seed"]])

        def finish(trace: Trace) -> Trace:
            return trace if task is None or trace.stop == "interrupted" else graded(trace, task)

        heading = f"Run {self._count + 1}: {student} with {'no teacher' if teacher == 'none' else teacher}"
        self._run(heading, _told(used), begin, finish=finish, pace=used["pace"])
        return self

    def _engine(self, name: str) -> Engine:
        if not isinstance(self._students[name], Engine):
            self._students[name] = load_engine(self._students[name])
        return self._students[name]

    def _teacher(self, name: str) -> Teacher:
        if isinstance(self._teachers[name], str):
            self._teachers[name] = load_teacher(self._teachers[name])
        return self._teachers[name]


def _named(what: str, given: Sequence[Any]) -> dict[str, Any]:
    found = {str(one) if isinstance(one, (str, Path)) else one.name: one for one in given}
    if len(found) < len(given):
        raise ValueError(f"two {what}s have one name: give each once, and those that are made already other names")
    return found


def _chosen(what: str, name: str | None, among: dict[str, Any]) -> str:
    name = next(iter(among)) if name is None else name
    if name not in among:
        raise ValueError(f"there is no {what} {name!r} here; there are {', '.join(among)}")
    return name


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(settings) - set(SETTINGS):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    for name, value in settings.items():
        if value is None and name in OPTIONAL:
            continue
        whole = name in WHOLE
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < 0:
            raise ValueError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number, not below 0")
    RelayConfig(**{name: settings[name] for name in WHOLE[:3]})
    return settings


def _told(used: dict[str, Any]) -> str:
    """The settings of a run in words."""
    parts = [f"at most {used['max_tokens']} tokens"]
    if used["max_calls"] is not None:
        parts.append(f"{used['max_calls']} calls")
    if used["max_call_tokens"] is not None:
        parts.append(f"{used['max_call_tokens']} tokens a call")
    drawn = f"temperature {used['temperature']:g}, seed {used['seed']}" if used["temperature"] else "greedy"
    return ", ".join([*parts, drawn])
