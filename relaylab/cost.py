"""What a relay costs beyond the teacher's share of the tokens: FLOPs, money and time, computed from traces.

The paper's cost is the share of tokens that the teacher writes (section 4). Before it writes one token the teacher
reads everything in front of it, and the student reads and writes too. ``usage`` counts these tokens and ``costs``
prices them. Equations and limits: docs/cost.md.

Tokens are counted in the student's tokenizer, except those that the teacher wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product

import numpy as np
import pandas as pd

from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace

MEASURES = {
    "flops": "floating-point operations",
    "money": "in the currency of the prices",
    "seconds": "from the question to the last token",
    "teacher_busy": "seconds of the teacher's machine, shared by the rows of its batch",
}
ADDED = ("flops", "money", "seconds")  # the measures to which both models add
UNKNOWN = math.nan  # a missing price or speed is not 0: whatever needs it is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """One model and the machine or API that runs it. A value of None makes the measures that need it NaN.

    >>> ModelPrices(parameters=8e9, decode_rate=100, row_share=0.25).step_of(5)
    0.02
    """

    parameters: float  # those that take part in a token
    attention_width: int = 0  # layers x heads x head size; 0 leaves out attention's own FLOPs
    input_price: float | None = None  # of a million tokens read
    cached_price: float = 0.0  # of a million tokens that a cache holds; 0 on your own machine
    output_price: float | None = None  # of a million tokens written
    prefill_rate: float | None = None  # tokens read per second
    decode_rate: float | None = None  # tokens written per second for a single row
    row_share: float = 0.0  # each further row of the batch makes a step longer by this share of it
    batch: int = 1  # rows decoded together

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            positive = name in ("parameters", "prefill_rate", "decode_rate", "batch")
            if value is not None and not ((value > 0 if positive else value >= 0) and value < math.inf):
                raise ValueError(f"{name} is {value}; it must be {'a positive number' if positive else 'at least 0'}")

    def step_of(self, rows: int) -> float:
        """Seconds of a step in which each of ``rows`` rows gets one token."""
        return (1 + self.row_share * (rows - 1)) / _or_nan(self.decode_rate)

    def flops(self, tokens, context):
        """2 per parameter and token, and 4 per unit of attention, token and position that it looks at."""
        return 2 * self.parameters * tokens + 4 * self.attention_width * context

    def money(self, read, cached, written):
        """The price of so many tokens read, read from a cache, and written."""
        price = read * _or_nan(self.input_price) + cached * self.cached_price + written * _or_nan(self.output_price)
        return price / 1e6

    def seconds(self, read, written):
        """Seconds until so many tokens are read and written."""
        return read / _or_nan(self.prefill_rate) + written * self.step_of(self.batch)

    def busy(self, read, written):
        """Seconds of the machine: a decoding step serves all rows of the batch, a prefill only its own row."""
        return read / _or_nan(self.prefill_rate) + written * self.step_of(self.batch) / self.batch


def roofline(parameters: float, *, flops: float, bandwidth: float, bytes_per_parameter: float = 2) -> ModelPrices:
    """The speeds that a machine cannot exceed: weights read once per step, no overhead, no reading of the KV cache.

    ``flops`` and ``bandwidth`` are per second; 2 ``bytes_per_parameter`` are 16-bit weights.

    >>> prices = roofline(8e9, flops=1e15, bandwidth=3.2e12)
    >>> prices.decode_rate, prices.prefill_rate
    (200.0, 62500.0)
    """
    if not min(flops, bandwidth, bytes_per_parameter) > 0:
        raise ValueError(f"{flops=}, {bandwidth=}, {bytes_per_parameter=}: each must be a positive number")
    step, row = bytes_per_parameter * parameters / bandwidth, 2 * parameters / flops
    return ModelPrices(parameters=parameters, prefill_rate=1 / row, decode_rate=1 / step, row_share=row / step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Both models and the way between them."""

    student: ModelPrices
    teacher: ModelPrices
    network_delay: float = 0.0  # seconds there and back, per hand-off
    cache: bool = True  # the teacher keeps keys and values between calls; else each call reads the whole view again

    def __post_init__(self) -> None:
        if not 0 <= self.network_delay < math.inf:
            raise ValueError(f"network_delay is {self.network_delay}; it is seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class HandOff:
    """One call as the teacher sees it. A failed call reads and writes nothing; it costs one trip."""

    at: int  # completion position of the teacher's first token
    new: int = 0  # tokens that it has not read before
    again: int = 0  # tokens that it has read before; a cache saves them
    written: int = 0  # tokens that it writes
    delivered: int = 0  # tokens that the student gets
    withdrawn: int = 0  # tokens of ``new`` that it takes back before it writes
    to: str | None = field(default=None, repr=False)  # of several teachers, the one asked; each has read its own part


def hand_offs(trace: Trace) -> list[HandOff]:
    """The calls of a trace that reached the teacher, in order. Teacher tokens without a call count as one.

    >>> t = Trace("q", [1, 2], [5, 6, 7, 8, 9], "scttc", list("acttc"), [Call(1, 2, 2, 2, 2, 2), Call(4, 5, 9)])
    >>> hand_offs(t)[0]
    HandOff(at=2, new=3, again=0, written=2, delivered=2, withdrawn=0)
    """
    calls = [c for c in trace.calls if c.status in ("answered", "failed")]
    begun = {c.end for c in calls if c.delivered}
    runs = re.finditer(f"{TEACHER}+", trace.source)
    calls += [Call(r.start(), r.start(), delivered=len(r[0])) for r in runs if r.start() not in begun]
    result, read, at, view = [], dict[str | None, int](), 0, len(trace.prompt_ids)
    for call in sorted(calls, key=lambda c: c.end):
        view += call.end - at - trace.source.count(COMMAND, at, call.end)
        at = call.end
        if call.status == "failed":
            result.append(HandOff(call.end, to=call.to))
        else:
            written, withdrawn, seen = max(call.written, call.delivered), len(call.withdrawn), read.get(call.to, 0)
            result.append(HandOff(call.end, view - seen + withdrawn, seen, written, call.delivered, withdrawn, call.to))
            read[call.to] = view + call.delivered
    return result


USAGE_COLUMNS = (
    "id", "suite", "prompt", "tokens", "content", "teacher_share", "hand_offs", "teacher_new", "teacher_again",
    "teacher_written", "teacher_context", "teacher_context_again", "student_read", "student_written", "student_context",
    "measured_seconds",
)  # fmt: skip


def usage(traces: Iterable[Trace], *, to: str | None = None) -> pd.DataFrame:
    """The tokens of each response; one row per trace. ``to``: of several teachers, count the one with this name.

    ``content`` is the completion without commands. ``teacher_new`` is what the teacher reads with a cache,
    ``teacher_again`` what it reads in addition without one. ``*_context`` are sums over tokens of the positions that
    each looks at. The student wrote what a cascade discarded or a teacher took back, too. ``measured_seconds`` is the
    clock's time of the calls, NaN if one has no latency.

    >>> t = Trace("q", [1, 2], [5, 6, 7, 8], "scts", ["a", "<call>1</call>", "b", "c"], [Call(1, 2, 1, 1, 1, 1)])
    >>> usage([t])[["teacher_new", "teacher_again", "teacher_written", "student_read", "student_written"]].values
    array([[3, 0, 1, 3, 3]])
    """
    rows = []
    for trace in traces:
        counts = [[c.new, c.again, c.written, c.withdrawn] for c in hand_offs(trace) if to in (None, c.to)]
        new, again, written, withdrawn = np.array(counts, int).reshape(-1, 4).T
        run = len(trace.source.rstrip(TEACHER))  # the student does not read teacher tokens that end the answer
        own = run - trace.source.count(TEACHER, 0, run)
        discarded = [(0, trace.config.get("discarded_tokens", 0)), *((c.end, len(c.withdrawn)) for c in trace.calls)]
        lost = sum(n for _, n in discarded)
        prompt = len(trace.prompt_ids) if own or lost else 0  # otherwise the whole response is the teacher's
        view = new + again - withdrawn  # before the teacher's first token
        context = (_upto(new + again) - _upto(again) + _upto(view + written) - _upto(view)).sum()
        asked = [c for c in trace.calls if c.status in ("answered", "failed") and to in (None, c.to)]
        seconds = sum(_or_nan(c.latency) for c in asked)
        rows.append((
            trace.id, trace.problem.get("suite"), len(trace.prompt_ids), len(trace.source),
            len(trace.source) - trace.count(COMMAND), trace.call_ratio, len(new), new.sum(), again.sum(), written.sum(),
            context, _upto(again).sum(), prompt + run - own, own + lost,
            _upto(prompt + run) + sum(_upto(prompt + at + n) - _upto(prompt + at) for at, n in discarded), seconds,
        ))  # fmt: skip
    if not rows:
        raise ValueError("there is no trace to cost")
    return pd.DataFrame(rows, columns=list(USAGE_COLUMNS))


def alone(used: pd.DataFrame, who: str) -> pd.DataFrame:
    """The usage of the same responses, written by the ``student`` or the ``teacher`` alone, without commands.

    For a relay's usage this supposes an answer of the same length. The teacher is one hand-off away.
    """
    if who not in ("student", "teacher"):
        raise ValueError(f"who is {who!r}; it must be 'student' or 'teacher'")
    by_teacher = int(who == "teacher")
    new = dict(tokens=used.content, measured_seconds=UNKNOWN, teacher_share=float(by_teacher), hand_offs=by_teacher)
    new |= dict(teacher_again=0, teacher_context_again=0)
    counts = used.prompt, used.content, _upto(used.prompt + used.content)
    for columns, on in (("teacher_new teacher_written teacher_context", by_teacher),
                        ("student_read student_written student_context", 1 - by_teacher)):  # fmt: skip
        new |= {column: count * on for column, count in zip(columns.split(), counts)}
    return used.assign(**new)


def costs(used: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """``usage`` with its ``MEASURES`` and each model's part of them; one row per trace.

    >>> t = Trace("q", [1, 2], [5, 6, 7, 8], "scts", ["a", "<call>1</call>", "b", "c"], [Call(1, 2, 1, 1, 1, 1)])
    >>> prices = Prices(student=ModelPrices(parameters=1), teacher=ModelPrices(parameters=10))
    >>> costs(usage([t]), prices)[["student_flops", "teacher_flops", "flops", "money"]].values.tolist()
    [[12.0, 80.0, 92.0, nan]]
    """
    student, teacher, u = prices.student, prices.teacher, used
    again = 0 if prices.cache else u.teacher_again
    read = u.teacher_new + again
    context = u.teacher_context + (0 if prices.cache else u.teacher_context_again)
    priced = u.assign(
        student_flops=student.flops(u.student_read + u.student_written, u.student_context),
        teacher_flops=teacher.flops(read + u.teacher_written, context),
        student_money=student.money(u.student_read, 0, u.student_written),
        teacher_money=teacher.money(read, u.teacher_again - again, u.teacher_written),
        student_seconds=student.seconds(u.student_read, u.student_written),
        teacher_seconds=teacher.seconds(read, u.teacher_written),
        network_seconds=u.hand_offs * prices.network_delay,
        teacher_busy=teacher.busy(read, u.teacher_written),
    )
    # A model that did nothing costs nothing, even if its prices are unknown.
    priced.loc[u.student_written == 0, [f"student_{measure}" for measure in ADDED]] = 0.0
    priced.loc[u.hand_offs == 0, [f"teacher_{measure}" for measure in (*ADDED, "busy")]] = 0.0
    for measure in ADDED:
        priced[measure] = priced[f"student_{measure}"] + priced[f"teacher_{measure}"]
    priced["seconds"] += priced["network_seconds"]
    return priced


def cost_summary(
    traces: Iterable[Trace], prices: Prices, *, teacher_alone: Iterable[Trace] | None = None,
    student_alone: Iterable[Trace] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The mean cost of a response of the relay and of each model alone; ``X_of_teacher`` are ratios of these means.

    ``teacher_alone`` and ``student_alone`` are their own traces of the same problems. Without them each is supposed to
    write the relay's responses (column ``basis``).
    """
    used = usage(traces)
    systems = {"relay": ("measured", used)}
    for who, own in (("teacher", teacher_alone), ("student", student_alone)):
        other = used if own is None else usage(own)
        if sorted(other.id) != sorted(used.id):
            raise ValueError(f"the traces of the {who} alone are not of the relay's problems: decode the same ids")
        systems[f"{who} alone"] = ("same responses" if own is None else "measured", alone(other, who))
    table = pd.DataFrame(
        {name: costs(frame, prices)[["tokens", *MEASURES]].mean() for name, (_, frame) in systems.items()}
    ).T
    shares = [(f.teacher_share * f.tokens).sum() / max(1, f.tokens.sum()) for _, f in systems.values()]
    table.insert(0, "basis", [basis for basis, _ in systems.values()])
    table.insert(2, "teacher_share", shares)
    for who, names in (("teacher", [*MEASURES]), ("student", [*ADDED])):
        table[[f"{name}_of_{who}" for name in names]] = table[names] / table.loc[f"{who} alone", names]
    return table.rename_axis("system").reset_index()


def against_router(table: pd.DataFrame, p: float) -> pd.Series:
    """What a relay saves against a random router that sends a question to the teacher with probability ``p``.

    1 - relay / (p teacher + (1 - p) student) for each measure of a ``cost_summary``, negative if the relay costs more.
    With ``scorecard.matched_p`` the token share gives the paper's 98.2 %.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}; a router's probability lies in (0, 1]")
    costs = table.set_index("system")[["teacher_share", *MEASURES]].T
    return 1 - costs["relay"] / (p * costs["teacher alone"] + (1 - p) * costs["student alone"])


def regular_trace(*, prompt: int, tokens: int, calls: int, call_tokens: int, command_tokens: int) -> Trace:
    """A made-up response with evenly spaced calls; ``tokens`` counts it without its commands.

    >>> regular_trace(prompt=3, tokens=8, calls=2, call_tokens=1, command_tokens=1).source
    'ssctssctss'
    """
    if min(prompt, tokens, calls, call_tokens, command_tokens) < 0 or calls * call_tokens > tokens:
        raise ValueError(f"{calls} calls of {call_tokens} tokens do not fit into {tokens}; all numbers are 0 or more")
    own = tokens - calls * call_tokens
    return even_trace(own, [call_tokens] * calls, prompt=prompt, command_tokens=command_tokens)


def even_trace(
    own: int, delivered: Sequence[int], *, prompt: int, command_tokens: int, ignored: int = 0, requested: int = 0
) -> Trace:
    """A made-up response: ``own`` tokens of the student spread evenly around calls that deliver so many tokens each.

    At the end stand the ``ignored`` calls, which nobody answers; each requests ``requested`` tokens.
    """
    source, calls, parts = "", list[Call](), even_parts(own, len(delivered) + 1)
    for part, n in zip(parts, delivered):
        source += STUDENT * part + COMMAND * command_tokens
        calls.append(Call(len(source) - command_tokens, len(source), n, n, n, n))
        source += TEACHER * n
    source += STUDENT * parts[-1]
    for _ in range(ignored):
        source += COMMAND * command_tokens
        calls.append(Call(len(source) - command_tokens, len(source), requested, status="refused"))
    return Trace("", [0] * prompt, [0] * len(source), source, ["" if s == COMMAND else "x" for s in source], calls)


def even_parts(total: int, parts: int) -> list[int]:
    """A number as a sum of equal parts, as far as whole numbers can be equal.

    >>> even_parts(7, 3)
    [2, 2, 3]
    """
    return [total * (k + 1) // parts - total * k // parts for k in range(parts)]


def cost_sweep(
    prices: Prices, *, prompt: int, tokens: int, command_tokens: int, calls: Sequence[int], call_tokens: Sequence[int],
    network_delays: Sequence[float] = (0.0,), caches: Sequence[bool] = (True, False), batches: Sequence[int] = (1,),
) -> pd.DataFrame:  # fmt: skip
    """The cost of regular responses relative to the teacher alone, beside the teacher's share of the tokens.

    One row per combination of calls, tokens per call, delay, cache and teacher batch; those that do not fit into the
    response are left out. The teacher alone has the same delay and batch.
    """
    cases = [(count, n) for count, n in product(calls, call_tokens) if count * n <= tokens]
    if not cases:
        raise ValueError(f"no combination of calls and call_tokens fits into {tokens} tokens; make them smaller")
    shape = {"prompt": prompt, "tokens": tokens, "command_tokens": command_tokens}
    used = usage(regular_trace(calls=count, call_tokens=n, **shape) for count, n in cases)
    whole, frames = alone(used, "teacher"), []
    for delay, cache, batch in product(network_delays, caches, batches):
        here = replace(prices, network_delay=delay, cache=cache, teacher=replace(prices.teacher, batch=batch))
        frame = pd.DataFrame(cases, columns=["calls", "call_tokens"])
        frame = frame.assign(network_delay=delay, cache=cache, batch=batch, teacher_share=used.teacher_share)
        frames.append(frame.join(costs(used, here)[[*MEASURES]] / costs(whole, here)[[*MEASURES]]))
    return pd.concat(frames, ignore_index=True)


def breakeven_calls(prices: Prices, measure: str, *, call_tokens: int, tokens: int, **shape: int) -> int | None:
    """The fewest evenly spaced calls at which a response costs as much as the teacher alone; None if none do.

    ``shape`` are prompt and command_tokens of ``regular_trace``.

    >>> prices = Prices(student=ModelPrices(parameters=1), teacher=ModelPrices(parameters=100), cache=False)
    >>> breakeven_calls(prices, "flops", call_tokens=1, tokens=100, prompt=100, command_tokens=1)
    2
    """
    if call_tokens > tokens:
        return None
    shape |= {"call_tokens": call_tokens, "tokens": tokens}
    used = usage(regular_trace(calls=n, **shape) for n in range(1, tokens // max(1, call_tokens) + 1))
    dearer = _cost(used, prices, measure) >= _cost(alone(used, "teacher"), prices, measure)
    return int(dearer.to_numpy().argmax()) + 1 if dearer.any() else None


def breakeven_delay(used: pd.DataFrame, prices: Prices) -> float:
    """The network delay (s) at which the relays of a ``usage`` take as long as the teacher alone.

    Infinite for at most one hand-off per response; negative if the relays are slower without a network.
    """
    free, whole = replace(prices, network_delay=0.0), alone(used, "teacher")
    faster = _cost(whole, free, "seconds").sum() - _cost(used, free, "seconds").sum()
    more = used.hand_offs.sum() - whole.hand_offs.sum()
    return faster / more if more > 0 else math.inf


def _cost(used: pd.DataFrame, prices: Prices, measure: str) -> pd.Series:
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; there are {', '.join(MEASURES)}")
    column = costs(used, prices)[measure]
    if column.isna().any():
        models = {"student": prices.student, "teacher": prices.teacher}
        unset = [f"{who}.{k}" for who, model in models.items() for k, v in asdict(model).items() if v is None]
        raise ValueError(f"{measure} is unknown; set what it needs of {', '.join(unset)}")
    return column


def _or_nan(value: float | None) -> float:
    return UNKNOWN if value is None else value


def _upto(n):
    """1 + 2 + ... + n, which is what n tokens look at together."""
    return n * (n + 1) // 2
