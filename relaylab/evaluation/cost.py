"""What a relay costs beyond the teacher's share of the tokens: FLOPs, money and time, from traces.

The paper's cost is the share of tokens that the teacher writes (section 4). To write even one token the teacher has to
read everything before it, and the student reads and writes too. ``usage`` counts all of that, ``costs`` prices it with
``CostTerms`` that the user sets, ``summary`` puts it beside each model alone, and ``sweep`` shows when 1 % of the
tokens is not 1 % of the cost. Equations, and what is left out: docs/cost.md. Rows that wait: ``fleet.py``.

Tokens are counted in the student's tokenizer, but for those that the teacher wrote, which are counted in its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import pandas as pd

from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace

MEASURES = {
    "flops": "floating-point operations",
    "money": "in the currency of the prices",
    "seconds": "from the question to the last token",
    "teacher_busy": "seconds of the teacher's machine, shared by the rows of its batch",
}
ADDED = ("flops", "money", "seconds")  # those that both models add to
# A missing price or speed is not 0: what would need it is unknown.
UNKNOWN = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """One model and the machine or the API that runs it; what is None leaves its measures unknown (NaN).

    parameters: of the model, those that take part in a token. attention_width: layers x heads x head size; 0 leaves out
    attention's own FLOPs, which grow with the context. Prices are for a million tokens; ``cached_price`` is for input
    that is in a cache already, 0 on a machine of your own. prefill_rate: tokens/s read. decode_rate: tokens/s written
    for one row by itself; each further row of the ``batch`` makes a step longer by ``row_share`` of it.

    >>> ModelTerms(parameters=8e9, decode_rate=100, row_share=0.25).step_of(5)
    0.02
    """

    parameters: float
    attention_width: int = 0
    input_price: float | None = None
    cached_price: float = 0.0
    output_price: float | None = None
    prefill_rate: float | None = None
    decode_rate: float | None = None
    row_share: float = 0.0
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("parameters", "prefill_rate", "decode_rate", "batch"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a positive number")
        for name in ("attention_width", "input_price", "cached_price", "output_price", "row_share"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must not be negative")

    def step_of(self, rows: int) -> float:
        """Seconds in which each of so many rows gets one more token."""
        return (1 + self.row_share * (rows - 1)) / _known(self.decode_rate)

    def flops(self, tokens: float, context: float) -> float:
        """2 a parameter and token, and 4 a unit of attention, token and position that it looks at."""
        return 2 * self.parameters * tokens + 4 * self.attention_width * context

    def money(self, read: float, cached: float, written: float) -> float:
        paid = read * _known(self.input_price) + cached * self.cached_price + written * _known(self.output_price)
        return paid / 1e6

    def seconds(self, read: float, written: float) -> float:
        return read / _known(self.prefill_rate) + written * self.step_of(self.batch)

    def busy(self, read: float, written: float) -> float:
        """Seconds of the machine: a decoding step serves all rows of the batch, reading keeps it to itself."""
        return read / _known(self.prefill_rate) + written * self.step_of(self.batch) / self.batch


def roofline(parameters: float, *, flops: float, bandwidth: float, bytes_per_parameter: float = 2) -> ModelTerms:
    """The speeds that a machine of so many FLOP/s and bytes/s cannot exceed: weights read once a step, no overhead.

    Reading the keys and values of the context is left out. Use measured speeds where you have them.

    >>> terms = roofline(8e9, flops=1e15, bandwidth=3.2e12)
    >>> terms.decode_rate, terms.prefill_rate
    (200.0, 62500.0)
    """
    for name, value in (("flops", flops), ("bandwidth", bandwidth), ("bytes_per_parameter", bytes_per_parameter)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be a positive number")
    step = bytes_per_parameter * parameters / bandwidth
    row = 2 * parameters / flops
    return ModelTerms(parameters=parameters, prefill_rate=1 / row, decode_rate=1 / step, row_share=row / step)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerms:
    """Both models and what is between them. ``network_delay``: seconds there and back, once a hand-off.

    cache: the teacher keeps a row's keys and values between its calls, as relaylab's ``LocalTeacher`` does, so that it
    reads only what is new. Without it every call reads the whole view again, as with a stateless server.
    """

    student: ModelTerms
    teacher: ModelTerms
    network_delay: float = 0.0
    cache: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.network_delay < math.inf:
            raise ValueError(f"network_delay is {self.network_delay}; it is seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class HandOff:
    """One call as the teacher meets it: it reads ``new`` tokens behind ``again`` that it has seen before, and writes
    ``written``. ``at`` is the completion position of its first token, ``delivered`` what the student got.

    A call that failed reads and writes nothing here; it costs its way through the network.
    """

    at: int
    new: int = 0
    again: int = 0
    written: int = 0
    delivered: int = 0


def hand_offs(trace: Trace) -> list[HandOff]:
    """The calls of a trace that reached the teacher, in order. A run of teacher tokens without a call is one too.

    >>> t = Trace("q", [1, 2], [5, 6, 7, 8, 9], "scttc", list("acttc"), [Call(1, 2, 2, 2, 2, 2), Call(4, 5, 9)])
    >>> hand_offs(t)[0]
    HandOff(at=2, new=3, again=0, written=2, delivered=2)
    """
    asked = [c for c in trace.calls if c.status in ("answered", "failed")]
    begun = {c.end for c in asked if c.delivered}
    for run in re.finditer(f"{TEACHER}+", trace.source):
        if run.start() not in begun:
            asked.append(Call(run.start(), run.start(), delivered=len(run[0])))
    found, seen, at, view = [], 0, 0, len(trace.prompt_ids)
    for call in sorted(asked, key=lambda c: c.end):
        view += call.end - at - trace.source.count(COMMAND, at, call.end)
        at = call.end
        if call.status == "failed":
            found.append(HandOff(call.end))
            continue
        found.append(HandOff(call.end, view - seen, seen, max(call.written, call.delivered), call.delivered))
        seen = view + call.delivered
    return found


def usage(traces: Iterable[Trace]) -> pd.DataFrame:
    """What each response took, in tokens; one row a trace.

    ``content`` is the completion without commands. ``teacher_new`` is what the teacher reads with a cache and
    ``teacher_again`` what it reads besides without one; ``*_context`` are the sums, over the tokens run, of the
    positions that each looks at. An answer of the student's that a cascade threw away (``terms["discarded_tokens"]``)
    is the student's too. ``measured_seconds`` is what the calls took by the clock, NaN where a call has no latency.
    Raises ValueError without any trace.

    >>> t = Trace("q", [1, 2], [5, 6, 7, 8], "scts", ["a", "<call>1</call>", "b", "c"], [Call(1, 2, 1, 1, 1, 1)])
    >>> usage([t])[["teacher_new", "teacher_again", "teacher_written", "student_read", "student_written"]].values
    array([[3, 0, 1, 3, 3]])
    """
    rows = []
    for trace in traces:
        calls = hand_offs(trace)
        run = len(trace.source.rstrip(TEACHER))  # a last answer of the teacher's is not read by the student
        own = run - trace.source.count(TEACHER, 0, run)
        thrown = trace.config.get("discarded_tokens", 0)  # an answer of the student's before this one: a cascade's
        prompt = len(trace.prompt_ids) if own or thrown else 0  # else the response is all the teacher's
        latencies = [c.latency for c in trace.calls if c.status in ("answered", "failed")]
        rows.append(
            {
                "id": trace.id,
                "suite": trace.problem.get("suite"),
                "prompt": len(trace.prompt_ids),
                "tokens": len(trace.source),
                "content": len(trace.source) - trace.count(COMMAND),
                "teacher_share": trace.call_ratio,
                "hand_offs": len(calls),
                "teacher_new": sum(c.new for c in calls),
                "teacher_again": sum(c.again for c in calls),
                "teacher_written": sum(c.written for c in calls),
                "teacher_context": sum(_upto(c.new + c.again + c.written) - _upto(c.again) for c in calls),
                "teacher_context_again": sum(_upto(c.again) for c in calls),
                "student_read": prompt + run - own,
                "student_written": own + thrown,
                "student_context": _upto(prompt + (run if own else thrown)),
                "measured_seconds": UNKNOWN if None in latencies else sum(latencies),
            }
        )
    if not rows:
        raise ValueError("there is no trace to cost")
    return pd.DataFrame(rows)


def alone(used: pd.DataFrame, who: str) -> pd.DataFrame:
    """The usage of the same responses, written by the ``student`` or the ``teacher`` alone.

    For a relay's usage this is a supposition: as long an answer, without the commands. For the usage of traces that one
    model wrote it is what happened. The teacher is one hand-off away.
    """
    if who not in ("student", "teacher"):
        raise ValueError(f"who is {who!r}; it must be 'student' or 'teacher'")
    teacher, context = int(who == "teacher"), _upto(used.prompt + used.content)
    return used.assign(
        tokens=used.content,
        teacher_share=float(teacher),
        hand_offs=teacher,
        teacher_new=used.prompt * teacher,
        teacher_again=0,
        teacher_written=used.content * teacher,
        teacher_context=context * teacher,
        teacher_context_again=0,
        student_read=used.prompt * (1 - teacher),
        student_written=used.content * (1 - teacher),
        student_context=context * (1 - teacher),
        measured_seconds=UNKNOWN,
    )


def costs(used: pd.DataFrame, terms: CostTerms) -> pd.DataFrame:
    """``usage`` with its price: ``MEASURES``, and what each model adds to them, one row a trace.

    >>> t = Trace("q", [1, 2], [5, 6, 7, 8], "scts", ["a", "<call>1</call>", "b", "c"], [Call(1, 2, 1, 1, 1, 1)])
    >>> terms = CostTerms(student=ModelTerms(parameters=1), teacher=ModelTerms(parameters=10))
    >>> costs(usage([t]), terms)[["student_flops", "teacher_flops", "flops", "money"]].values.tolist()
    [[12.0, 80.0, 92.0, nan]]
    """
    student, teacher, u = terms.student, terms.teacher, used
    again = 0 if terms.cache else u.teacher_again
    read = u.teacher_new + again
    context = u.teacher_context + (0 if terms.cache else u.teacher_context_again)
    priced = u.assign(
        student_flops=student.flops(u.student_read + u.student_written, u.student_context),
        teacher_flops=teacher.flops(read + u.teacher_written, context),
        student_money=student.money(u.student_read, 0, u.student_written),
        teacher_money=teacher.money(read, u.teacher_again - again, u.teacher_written),
        student_seconds=student.seconds(u.student_read, u.student_written),
        teacher_seconds=teacher.seconds(read, u.teacher_written),
        network_seconds=u.hand_offs * terms.network_delay,
        teacher_busy=teacher.busy(read, u.teacher_written),
    )
    # A model that did nothing costs nothing, whatever is not known about it.
    priced.loc[u.student_written == 0, [f"student_{measure}" for measure in ADDED]] = 0.0
    priced.loc[u.hand_offs == 0, [f"teacher_{measure}" for measure in (*ADDED, "busy")]] = 0.0
    for measure in ADDED:
        priced[measure] = priced[f"student_{measure}"] + priced[f"teacher_{measure}"]
    priced["seconds"] += priced["network_seconds"]
    return priced


def summary(
    traces: Iterable[Trace],
    terms: CostTerms,
    *,
    teacher_alone: Iterable[Trace] | None = None,
    student_alone: Iterable[Trace] | None = None,
) -> pd.DataFrame:
    """The mean cost of a response of the relay and of each model alone; ``X_of_teacher``: ratios of these means.

    ``teacher_alone`` and ``student_alone`` are traces that the one model wrote on the same problems; without them it is
    supposed to write the relay's responses (column ``basis``). Raises ValueError where the problems differ.
    """
    used = usage(traces)
    systems = {"relay": ("measured", used)}
    for who, own in (("teacher", teacher_alone), ("student", student_alone)):
        other = used if own is None else usage(own)
        if sorted(other.id) != sorted(used.id):
            raise ValueError(f"the traces of the {who} alone are not of the relay's problems: decode the same ids")
        systems[f"{who} alone"] = ("same responses" if own is None else "measured", alone(other, who))
    rows = []
    for name, (basis, frame) in systems.items():
        priced = costs(frame, terms)
        means = {measure: priced[measure].mean() for measure in MEASURES}
        share = (priced.teacher_share * priced.tokens).sum() / max(1, priced.tokens.sum())
        rows.append({"system": name, "basis": basis, "tokens": priced.tokens.mean(), "teacher_share": share} | means)
    found = pd.DataFrame(rows).set_index("system")
    for who, names in (("teacher", MEASURES), ("student", ADDED)):
        for measure in names:
            found[f"{measure}_of_{who}"] = found[measure] / found.loc[f"{who} alone", measure]
    return found.reset_index()


def against_router(found: pd.DataFrame, p: float) -> pd.Series:
    """How much less than a random router that sends a query to the teacher with probability ``p`` a relay costs.

    ``found`` is a ``summary``. 1 - relay / (p teacher + (1 - p) student), for the share of tokens (the paper's 98.2 %
    where p is ``published.matched_p``) and for every measure; negative where the relay costs more.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}; a router's probability lies in (0, 1]")
    table = found.set_index("system")[["teacher_share", *MEASURES]]
    return 1 - table.loc["relay"] / (p * table.loc["teacher alone"] + (1 - p) * table.loc["student alone"])


def regular_trace(*, prompt: int, tokens: int, calls: int, call_tokens: int, command_tokens: int) -> Trace:
    """A made-up response of ``tokens`` without its commands, in which ``calls`` of ``call_tokens`` are evenly spaced.

    >>> regular_trace(prompt=3, tokens=8, calls=2, call_tokens=1, command_tokens=1).source
    'ssctssctss'
    """
    if min(prompt, tokens, calls, call_tokens, command_tokens) < 0 or calls * call_tokens > tokens:
        raise ValueError(f"{calls} calls of {call_tokens} tokens do not fit into {tokens}; all numbers are 0 or more")
    own, source, made = tokens - calls * call_tokens, "", []
    for k in range(calls):
        source += STUDENT * (own * (k + 1) // (calls + 1) - own * k // (calls + 1)) + COMMAND * command_tokens
        end = len(source)
        made.append(Call(end - command_tokens, end, call_tokens, call_tokens, call_tokens, call_tokens))
        source += TEACHER * call_tokens
    source += STUDENT * (own - own * calls // (calls + 1))
    return Trace("", [0] * prompt, [0] * len(source), source, [""] * len(source), made)


def sweep(
    terms: CostTerms,
    *,
    prompt: int,
    tokens: int,
    command_tokens: int,
    calls: Sequence[int],
    call_tokens: Sequence[int],
    network_delays: Sequence[float] = (0.0,),
    caches: Sequence[bool] = (True, False),
    batches: Sequence[int] = (1,),
) -> pd.DataFrame:
    """The cost of a response relative to the teacher alone, beside the teacher's share, for every combination.

    One row each of calls x tokens a call x network delay (s) x cache x rows in the teacher's batch; those in which the
    calls do not fit into the response are left out. The teacher alone has the same delay and batch. ValueError where
    nothing fits.
    """
    cases = [(count, n) for count, n in product(calls, call_tokens) if count * n <= tokens]
    if not cases:
        raise ValueError(f"no combination of calls and call_tokens fits into {tokens} tokens; make them smaller")
    shape = {"prompt": prompt, "tokens": tokens, "command_tokens": command_tokens}
    used = usage(regular_trace(calls=count, call_tokens=n, **shape) for count, n in cases)
    whole, frames = alone(used, "teacher"), []
    for delay, cache, batch in product(network_delays, caches, batches):
        here = replace(terms, network_delay=delay, cache=cache, teacher=replace(terms.teacher, batch=batch))
        frame = pd.DataFrame(cases, columns=["calls", "call_tokens"])
        frame = frame.assign(network_delay=delay, cache=cache, batch=batch, teacher_share=used.teacher_share)
        frames.append(frame.join(costs(used, here)[[*MEASURES]] / costs(whole, here)[[*MEASURES]]))
    return pd.concat(frames, ignore_index=True)


def breakeven_calls(terms: CostTerms, measure: str, *, call_tokens: int, tokens: int, **shape: int) -> int | None:
    """The fewest evenly spaced calls with which a response costs as much as the teacher alone; None if none do.

    ``shape``: prompt and command_tokens of ``regular_trace``. ValueError where a price or speed is missing.

    >>> free = ModelTerms(parameters=1)
    >>> terms = CostTerms(student=free, teacher=ModelTerms(parameters=100), cache=False)
    >>> breakeven_calls(terms, "flops", call_tokens=1, tokens=100, prompt=100, command_tokens=1)
    2
    """
    shape |= {"call_tokens": call_tokens, "tokens": tokens}
    used = usage(regular_trace(calls=n, **shape) for n in range(1, tokens // max(1, call_tokens) + 1))
    dearer = _cost(used, terms, measure) >= _cost(alone(used, "teacher"), terms, measure)
    return int(dearer.idxmax()) + 1 if dearer.any() else None


def breakeven_delay(used: pd.DataFrame, terms: CostTerms) -> float:
    """The network delay (s, there and back) at which the relays of a ``usage`` take as long, together, as the teacher
    alone; infinite where they hand off at most once a response, negative where they are slower without a network."""
    free, whole = replace(terms, network_delay=0.0), alone(used, "teacher")
    faster = _cost(whole, free, "seconds").sum() - _cost(used, free, "seconds").sum()
    more = used.hand_offs.sum() - whole.hand_offs.sum()
    return faster / more if more > 0 else math.inf


def _cost(used: pd.DataFrame, terms: CostTerms, measure: str) -> pd.Series:
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; there are {', '.join(MEASURES)}")
    found = costs(used, terms)[measure]
    if found.isna().any():
        unset = [f"{w}.{k}" for w in ("student", "teacher") for k, v in asdict(getattr(terms, w)).items() if v is None]
        raise ValueError(f"{measure} is unknown; set what it needs of {', '.join(unset)}")
    return found


def _known(value: float | None) -> float:
    return UNKNOWN if value is None else value


def _upto(n):
    """1 + 2 + ... + n: what n tokens look at together; of numbers and of columns."""
    return n * (n + 1) // 2
