"""``Trace``: the one record of a relay. Metrics, rewards, loss masks and views read it and re-derive nothing from text.

Every completion token has one ``source``, a letter: ``s`` student, ``t`` teacher, ``c`` command (a student token that
holds at least one character of a closed call). Ids are those that were sampled or given, in order.

Files are JSON Lines, one trace a line, each line complete in itself. A last line torn by a crash is left out when
reading and cut off when appending; a broken line elsewhere is an error that names it.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from relaylab.call_tag import TAG, strip_calls
from relaylab.files import LineWriter, read_lines

if TYPE_CHECKING:
    import datasets
    import pandas

VERSION = 2
STUDENT, TEACHER, COMMAND = "s", "t", "c"
RARE = ("alternatives", "history", "teacher_top", "divergences")  # fields that most traces do without
PARALLEL = (  # fields with one entry per completion token
    "source", "pieces", "logprobs", "entropies", "teacher_logprobs", "teacher_top", "divergences", "alternatives",
)  # fmt: skip
STATISTICS = dict.fromkeys(PARALLEL[2:])  # the fields of numbers, all None: for a copy with other tokens
NESTED = ("calls", "problem", "config", *RARE)  # fields that a table holds as JSON text

# Why a generation ended: the student's end token; the teacher's; the limit of tokens; the model's context is full; the
# policy `exclude` after a teacher failure; the caller closed the stream.
STOPS = ("end", "teacher_end", "length", "context", "excluded", "interrupted")
UNFINISHED = ("excluded", "interrupted")  # of these, those that hold no answer
PROBLEMS = ("empty", "malformed", "zero", "too_large", "unclosed")  # statuses of calls that are none


def _without_calls(text: str, named: bool) -> str:
    """As a relay finds calls: among the bytes of a turn, each of which counts as a character of a command."""
    as_bytes = text.encode(errors="surrogatepass").decode("latin-1")
    return strip_calls(as_bytes, named=named).encode("latin-1").decode(errors="surrogatepass")


@dataclass(slots=True)
class Call:
    """One call of the student. Positions count completion tokens; ``end`` is where the teacher's tokens begin.

    status: ``waiting`` (for the teacher, while it happens); ``answered``; ``failed`` (the teacher could not, see
    ``error``); ``interrupted`` (before it was answered); ``refused`` (a cap left nothing to grant); ``unknown`` (no
    teacher has its name); or the problem of the command: ``empty``, ``malformed``, ``zero``, ``too_large``,
    ``unclosed``.
    """

    start: int
    end: int
    requested: int | None = None
    granted: int = 0  # after the caps, in the teacher's tokens
    delivered: int = 0  # completion tokens that came of it, in the student's tokens
    written: int = 0  # tokens the teacher wrote, in its own; differs from `delivered` between tokenizers
    status: str = "answered"
    finish_reason: str | None = None  # `length`, `line`, `stop` (it ended the answer), `accepted` (it added nothing)
    teacher: str | None = None
    latency: float | None = None  # seconds, retries included
    error: str | None = None
    forced: bool = False  # written by a policy or a fork, not by the student
    withdrawn: list[str] = field(default_factory=list)  # tokens of the student that the teacher took back here
    approximate: bool = False  # the teacher only chats: cut from a new turn, and `written` counts what was cut, too
    to: str | None = None  # of several teachers, the name of the one asked; `teacher` is the model that answered

    @property
    def lost(self) -> bool:
        """Nobody answered it, and nobody will."""
        return self.status not in ("answered", "waiting")


@dataclass(slots=True)
class Trace:
    """One prompt and its relayed completion.

    >>> t = Trace(prompt="2*3?", prompt_ids=[1], completion_ids=[5, 6, 7, 8], source="scct",
    ...           pieces=["=", "<call>1", "</call>", "6"], calls=[Call(1, 3, 1, 1, 1, 1)], stop="end")
    >>> t.text, t.teacher_view, t.call_ratio
    ('=<call>1</call>6', '=6', 0.25)
    """

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    source: str = ""
    pieces: list[str] = field(default_factory=list)  # the text of each token; joined they are the completion's text
    calls: list[Call] = field(default_factory=list)
    stop: str = ""
    logprobs: list[float | None] | None = None  # of each token under the student, at temperature 1, in nats
    entropies: list[float | None] | None = None  # of the student's distribution before each token, in nats
    teacher_logprobs: list[float | None] | None = None  # under the teacher, where it saw the token (``recorded``)
    teacher_top: list[str | None] | None = None  # the likeliest token of the teacher there
    divergences: list[float | None] | None = None  # KL(student || teacher) there, in nats
    # The likeliest texts there with their probabilities; "<call>" is always among them, for all tokens that begin one.
    alternatives: list[dict[str, float] | None] | None = None
    history: list[dict[str, str]] | None = None  # the chat messages before the prompt
    seed: int | None = None
    temperature: float = 0.0
    student: str = ""
    teacher: str = ""
    id: str = ""
    problem: dict[str, Any] = field(default_factory=dict)  # question, answer, suite ... of the task
    correct: bool | None = None
    config: dict[str, Any] = field(default_factory=dict)  # what decided it, where `Pair.decode` made it

    def __post_init__(self) -> None:
        """Raise ValueError unless the parallel lists are of one length and the calls lie within them."""
        n = len(self.completion_ids)
        for name in PARALLEL:
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"trace {self.id!r}: {name} has {len(value)} entries for {n} completion tokens")
        if extra := set(self.source) - {STUDENT, TEACHER, COMMAND}:
            raise ValueError(f"trace {self.id!r}: unknown sources {sorted(extra)}; known are s, t and c")
        for call in self.calls:
            if not 0 <= call.start <= call.end <= call.end + call.delivered <= n:
                raise ValueError(f"trace {self.id!r}: call {call} lies outside of its {n} tokens")

    check = __post_init__  # again, after changes in place

    @property
    def text(self) -> str:
        """The completion as the student sees it, commands included."""
        return "".join(self.pieces)

    @property
    def teacher_view(self) -> str:
        """The completion as the teacher sees it: the student's commands removed, the teacher's own text untouched."""
        named = self.named
        turns = self.segments()
        return "".join(text if s == TEACHER else _without_calls(text, named) for s, text in turns)

    @property
    def named(self) -> bool:
        """Whether commands may name a teacher. Each closed one has a call here, and with several teachers a name."""
        return any(c.to is not None for c in self.calls)

    def segments(self) -> Iterator[tuple[str, str]]:
        """Turns: ("s", text with its commands) and ("t", text) in turn."""
        pieces = zip(self.source.replace(COMMAND, STUDENT), self.pieces)
        for source, turn in itertools.groupby(pieces, key=lambda pair: pair[0]):
            yield source, "".join(piece for _, piece in turn)

    def count(self, source: str) -> int:
        """Completion tokens of one source."""
        return self.source.count(source)

    @property
    def answered(self) -> list[Call]:
        return [c for c in self.calls if c.status == "answered"]

    @property
    def call_ratio(self) -> float:
        """rho: delivered teacher tokens over all completion tokens, commands included (section 3); 0 where empty."""
        return self.count(TEACHER) / len(self.completion_ids) if self.completion_ids else 0.0

    @property
    def tag_tokens(self) -> int:
        """Student tokens that hold no content: those of commands, and any that touch a stray or broken tag."""
        tags = [m.span() for m in TAG.finditer(self.text)]
        count = begin = k = 0
        for piece, source in zip(self.pieces, self.source):
            end = begin + len(piece)
            while k < len(tags) and tags[k][1] <= begin:
                k += 1
            touched = k < len(tags) and tags[k][0] < end
            count += source == COMMAND or (source == STUDENT and touched)
            begin = end
        return count

    @property
    def content_ratio(self) -> float:
        """Delivered teacher tokens over all tokens but those of tags: ``call_ratio`` that stray commands cannot dilute.

        >>> Trace("q", [1], [5, 6, 7], "sst", ["<call", ">", "x"]).content_ratio
        1.0
        """
        content = len(self.completion_ids) - self.tag_tokens
        return self.count(TEACHER) / content if content else 0.0

    @property
    def first_call(self) -> int | None:
        """Completion position of the first answered call's command, or None."""
        return min((c.start for c in self.answered), default=None)

    @property
    def mean_n(self) -> float | None:
        """Mean delivered tokens per answered call, or None without one."""
        calls = self.answered
        return sum(c.delivered for c in calls) / len(calls) if calls else None

    def to_dict(self) -> dict[str, Any]:
        data = {"version": VERSION} | asdict(self)
        return {k: v for k, v in data.items() if v is not None or k not in RARE}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trace:
        """The trace that ``to_dict`` wrote.

        Raises:
            ValueError: for what is no trace, another version, an unknown field, a value of a wrong type, or text that
                is no Unicode.
        """
        fields: dict[str, Any] = dict(data)
        if "prompt" not in fields:
            raise ValueError("it holds no trace")
        if (version := fields.pop("version", None)) != VERSION:
            raise ValueError(f"this is a trace of version {version!r}; this relaylab reads version {VERSION}")
        if wrong := _wrong_type(fields):
            raise ValueError(wrong)
        fields["calls"] = [Call(**c) for c in fields.get("calls", [])]
        return cls(**fields)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=True, separators=(",", ":"))


@functools.cache
def _schema() -> Any:
    """A model of pydantic that accepts the fields of a trace."""
    from pydantic import ConfigDict, create_model  # slow to import, and most commands only write

    def model(hints: dict[str, Any], extra: Literal["allow", "forbid"] = "forbid") -> Any:
        optional: dict[str, Any] = {name: (kind, None) for name, kind in hints.items()}
        return create_model("Fields", __config__=ConfigDict(strict=True, extra=extra), **optional)

    text = dict.fromkeys(("id", "suite", "level", "question", "answer", "solution"), str)
    problem = model(text | {"steps": list[dict[str, Any]]}, "allow")
    return model(get_type_hints(Trace) | {"calls": list[model(get_type_hints(Call))], "problem": problem})


def _wrong_type(data: dict[str, Any]) -> str:
    """The first field of a trace with a value of a wrong type, or text that is no Unicode; empty if there is none."""
    from pydantic import ValidationError

    try:
        _schema().model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    texts = [data.get("id", ""), data.get("prompt", ""), *data.get("pieces", ()), *data.get("problem", {}).values()]
    texts += [text for likely in data.get("alternatives") or () for text in likely or ()]
    texts += data.get("teacher_top") or ()
    try:
        "".join(text for text in texts if isinstance(text, str)).encode()
    except UnicodeEncodeError:
        return "a text holds half of a surrogate pair, which is no character"
    return ""


def read_traces(path: str | os.PathLike) -> Iterator[Trace]:
    """The traces of a file, one at a time; a torn last line is left out.

    Raises:
        ValueError: with file and line, for a broken line that is not the last.
    """
    return read_lines(path, Trace.from_dict)


class TraceWriter(LineWriter):
    """Appends traces to a file, each flushed whole.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "t.jsonl"
    >>> with TraceWriter(path) as out: out.write(Trace("q", [1], id="a"))
    >>> [t.id for t in read_traces(path)]
    ['a']
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, begins=b'{"version":%d,"prompt":' % VERSION)

    def write(self, trace: Trace) -> None:
        trace.check()
        self.write_line(trace.to_json())

    def replace(self, traces: Iterable[Trace]) -> None:
        """Let the file hold these traces, and nothing else, in one step."""
        self.replace_lines(t.to_json() for t in traces)


def to_dataset(traces: Iterable[Trace]) -> datasets.Dataset:
    """A ``datasets.Dataset`` with one row per trace; what is nested is JSON text, so that any mix fits."""
    import datasets

    rows = [data | {k: json.dumps(data.get(k)) for k in NESTED} for data in (t.to_dict() for t in traces)]
    return datasets.Dataset.from_list(rows)


def from_dataset(dataset: datasets.Dataset) -> Iterator[Trace]:
    """The traces of a dataset made by ``to_dataset``."""
    for row in dataset:
        values: Any = row
        yield Trace.from_dict(values | {k: json.loads(values[k]) for k in NESTED if k in values})


def to_frame(traces: Iterable[Trace]) -> pandas.DataFrame:
    """A tidy pandas frame, one row per trace: identity, outcome, and the counts that analyses start from."""
    import pandas

    return pandas.DataFrame(
        {
            "id": t.id,
            "suite": t.problem.get("suite"),
            "student": t.student,
            "teacher": t.teacher,
            "seed": t.seed,
            "temperature": t.temperature,
            "correct": t.correct,
            "stop": t.stop,
            "tokens": len(t.completion_ids),
            "student_tokens": t.count(STUDENT),
            "teacher_tokens": t.count(TEACHER),
            "command_tokens": t.count(COMMAND),
            "call_ratio": t.call_ratio,
            "calls": len(t.answered),
            "unanswered_calls": len(t.calls) - len(t.answered),
            "mean_n": t.mean_n,
            "first_call": t.first_call,
        }
        for t in traces
    )
