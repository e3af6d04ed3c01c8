"""The playground: ask any student and teacher the embedded suites' questions or your own; watch, stop, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets as t

from relaylab.defaults import STUDENT, TEACHER
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import ALL_SUITES, Problem, level_of, problem
from relaylab.views.live_view import ALTERNATIVES, LiveView, Run

if TYPE_CHECKING:
    from relaylab.engine.engine import Engine
    from relaylab.relay.relay import Stream
    from relaylab.relay.teachers import Teacher

LIMITS = {"max_tokens": "tokens", "max_calls": "calls", "max_call_tokens": "tokens per call"}  # and their units
DEFAULTS: dict[str, Any] = {"max_tokens": 256, "max_calls": None, "max_call_tokens": None}
DEFAULTS |= {"temperature": 0.0, "seed": 0, "pace": 0.0}


class Playground(LiveView):
    """A form for questions, the last answers side by side, and changes of their calls (``fork``).

    A notebook shows the widget. Without a page the same methods do the same.

    Args:
        students: Names as of ``load_engine``, or engines; all embedded students by default. The first is the default.
        teachers: Names as of ``load_teacher``, or teachers; all embedded teachers and ``none`` by default.
        suites: Where questions are picked from (test split).
        keep: The number of runs to keep.
        settings: ``max_tokens``, ``max_calls``, ``max_call_tokens``, ``temperature``, ``seed``, and ``pace`` (tokens
            per second to slow it down to, 0 for no limit).

    Raises:
        ValueError: An unknown suite or setting, a setting out of its range, or two models of one name.

    >>> playground = Playground(max_tokens=60)
    >>> playground.ask(playground.pick("savings", 0)).wait()
    True
    >>> playground.traces[0].problem["suite"], len(playground.traces[0].source) <= 60
    ('savings', True)
    """

    view = "playground"
    actions = (*LiveView.actions, "ask", "pick")
    empty = "no question has been asked yet"
    picked = t.Dict().tag(sync=True)
    picks = t.List().tag(sync=True)  # all that were: they are graded

    def __init__(
        self,
        *,
        students: Sequence[str | Path | Engine] | None = None,
        teachers: Sequence[str | Teacher] | None = None,
        suites: Sequence[str] = ALL_SUITES,
        keep: int = 6,
        **settings: Any,
    ):
        from relaylab.engine.load import embedded

        names = sorted(embedded(), key=lambda name: (name not in (STUDENT, TEACHER), name))
        self._students = _by_name("student", students or [n for n in names if not _is_teacher(n)])
        self._teachers = _by_name("teacher", teachers or [*filter(_is_teacher, names), "none"])
        self._suites = {suite: level_of(suite) for suite in suites}
        self._settings = _checked(DEFAULTS | settings)
        self._next = dict.fromkeys(self._suites, 0)
        self._problems: dict[str, Problem] = {}  # by question: those that were picked can be graded
        setup = {"suites": list(self._suites.items()), "students": list(self._students)}
        setup |= {"teachers": list(self._teachers), "settings": self._settings}
        super().__init__(keep=keep, pace=self._settings["pace"], setup=setup)
        if suites:
            self.pick(next((s for s, level in self._suites.items() if level == "hard"), next(iter(self._suites))))

    def pick(self, suite: str, index: int | None = None) -> Problem:
        """Pick a problem of a suite, the next one without ``index``. It stands in the form, and is returned.

        Raises:
            ValueError: The suite is not among the choices, or the index is no number from 0 on.
        """
        _chosen("suite", suite, self._suites)
        index = self._next[suite] if index is None else index
        if type(index) is not int or index < 0:
            raise ValueError(f"index is {index!r}; the problems of a suite are numbered from 0 on")
        self._next[suite] = index + 1
        task = problem(suite, index)
        self._problems[task.question] = task
        picked = {"suite": suite, "index": index, "question": task.question, "answer": task.answer}
        self.picks = [*self.picks, picked]
        self.picked = picked
        return task

    def ask(
        self, question: str | Problem, *, student: str | None = None, teacher: str | None = None, **settings: Any
    ) -> Playground:
        """Start to answer a question. A ``Problem``, and a question that was picked, is graded.

        Args:
            question: A text or a problem.
            student: A name among the choices.
            teacher: A name among the choices.
            settings: Those of the playground, for this run.

        Returns:
            The playground itself.

        Raises:
            ValueError: The question is empty, a name is not among the choices, or a setting is bad.
            RuntimeError: Another answer is being written.
        """
        from relaylab.engine.load import load_engine, relay_defaults
        from relaylab.relay.pair import Pair, load_teacher, notice

        task = question if isinstance(question, Problem) else self._problems.get(question.strip())
        text = task.question if task else str(question).strip()
        if not text:
            raise ValueError("there is no question; type one, or pick one of a suite")
        student = _chosen("student", student, self._students)
        teacher = _chosen("teacher", teacher, self._teachers)
        values = _checked(self._settings | settings)
        config = {name: values[name] for name in (*LIMITS, "temperature")}

        def begin(run: Run) -> Stream:
            engine = _loaded(self._students, student, load_engine)
            trained = relay_defaults(engine.source) if engine.source else {}
            pair = Pair(engine, _loaded(self._teachers, teacher, load_teacher), trained)
            run.relay = pair.relay(**config, alternatives=ALTERNATIVES)
            return run.relay.stream([text], seeds=[values["seed"]])

        heading = f"Run {self._count + 1}: {student} with {'no teacher' if teacher == 'none' else teacher}"
        described = ". ".join(filter(None, (_describe(values), notice(student, text))))
        self._start(heading, described, begin, task=task, pace=values["pace"])
        return self


def _loaded(models: dict[str, Any], name: str, load: Callable[[Any], Any]) -> Any:
    """The model of a name, loaded when it is first used."""
    if isinstance(models[name], str | Path):
        models[name] = load(models[name])
    return models[name]


def _by_name(what: str, models: Sequence[Any]) -> dict[str, Any]:
    by_name = {str(one) if isinstance(one, (str, Path)) else one.name: one for one in models}
    if len(by_name) < len(models):
        raise ValueError(f"two {what}s have the same name: give each once, or give loaded models other names")
    return by_name


def _chosen(what: str, name: str | None, choices: dict[str, Any]) -> str:
    name = next(iter(choices)) if name is None else name
    if name not in choices:
        raise ValueError(f"there is no {what} {name!r} here; there are {', '.join(choices)}")
    return name


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(settings) - set(DEFAULTS):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; there are {', '.join(DEFAULTS)}")
    for name, value in settings.items():
        if value is None and DEFAULTS[name] is None:
            continue
        whole = name in (*LIMITS, "seed")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < 0:
            raise ValueError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number, not below 0")
    RelayConfig(**{name: settings[name] for name in LIMITS})
    return settings


def _describe(values: dict[str, Any]) -> str:
    caps = [f"{values[name]} {unit}" for name, unit in LIMITS.items() if values[name] is not None]
    sampled = f"temperature {values['temperature']:g}, seed {values['seed']}" if values["temperature"] else "greedy"
    return f"at most {', '.join([*caps, sampled])}"


def _is_teacher(name: str) -> bool:
    """Whether an embedded model is a teacher, of whatever world."""
    return name.rpartition("/")[2].startswith("teacher")
