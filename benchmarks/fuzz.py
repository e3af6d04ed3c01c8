"""Random inputs against slow readings of the same rules: commands, answers, rows of tokens, relays.

    python benchmarks/fuzz.py                                # the counts of docs/reliability.md
    python benchmarks/fuzz.py --commands 1000 --relays 64    # other counts

The slow readings are those of the tests: the grammar by characters, and a relay that runs both models anew per token.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from grading_forms import fuzz

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from reference import slow_relay
from test_command import SCRAPS, slow_find

from relaylab.call_tag import find_calls, strip_calls
from relaylab.engine.load import embedded_tokenizer, load_engine
from relaylab.engine.token_text import FORBIDDEN, StudentTurn, TokenText
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.tasks.grading import grade
from relaylab.tasks.suites import SUITES, problem
from relaylab.trace import STOPS, Trace

Check = Callable[[bool, object], None]
REASONS = {"equal", "unequal", "no_box", "unparsable", "too_long", "timeout"}
BATCH, ALONE, SLOW = 64, 16, 8  # rows of a batch; of these, decoded alone; compared with the slow relay


def commands(count: int, r: random.Random, check: Check) -> None:
    """Texts full of tags and their halves."""
    for _ in range(count):
        text = "".join(r.choices(SCRAPS, k=r.randint(1, 16)))
        slow = slow_find(text)
        check([(c.start, c.end, c.n, c.problem) for c in find_calls(text)] == slow, text)
        check(strip_calls(text) == without(text, slow), text)


def without(text: str, calls: list[tuple]) -> str:
    kept, last = "", 0
    for start, end, _, wrong in calls:
        if wrong != "unclosed":
            kept, last = kept + text[last:start], end
    return kept + text[last:]


def answers(count: int, r: random.Random, check: Check) -> None:
    """Cut, spoilt and senseless answers: none raises, and neither a second time nor the next answer is another."""
    timeouts = 0
    for begin in range(0, count, 100):
        seed, size = r.randrange(2**32), min(100, count - begin)
        reasons, _ = fuzz(size, seed=seed)
        timeouts += reasons["timeout"]
        check(set(reasons) <= REASONS and reasons.total() == size, reasons)
        check(grade(r"\boxed{x+x}", "2x") and not grade(r"\boxed{x+x}", "3x"), seed)
        if begin % 1000 == 0 and not reasons["timeout"]:
            check(fuzz(size, seed=seed)[0] == reasons, seed)
    print(f"  {timeouts} answers took too long to compare")


def rows(count: int, r: random.Random, check: Check) -> None:
    """Rows of any tokens, special ones included, between the tokens of tags."""
    tokenizer = embedded_tokenizer()
    text = TokenText(tokenizer)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for _ in range(count):
        ids: list[int] = []
        for _ in range(r.randint(1, 12)):
            ids += text.encode(r.choice(SCRAPS)) if r.random() < 0.7 else [r.randrange(text.size)]
        turn = StudentTurn(text)
        for token in ids:
            turn.append(token)
        raw = b"".join(text.bytes[i] for i in ids)
        joined, latin = "".join(text.pieces(ids)), raw.decode("latin-1")
        slow = slow_find(latin)
        closed = [c for c in slow if c[3] != "unclosed"]
        parts = list(turn.kept())
        view, kept = [i for _, some, _ in parts for i in some], b"".join(rest for _, _, rest in parts)
        check(joined == raw.decode(errors="replace") == tokenizer.decode(ids, skip_special_tokens=False), ids)
        check(bytes(turn.bytes) == raw and [(c.start, c.end, c.n, c.problem) for c in turn.calls] == closed, ids)
        check(kept.decode("latin-1") == without(latin, slow), ids)
        check(b"".join(text.bytes[i] for i in view) == kept and (bool(closed) or view == ids), ids)
        check("".join(text.pieces(again := text.encode(joined))) == joined and not special & set(again), ids)
        token, tail = r.randrange(text.size), raw[1 - len(FORBIDDEN) :]
        check(bool(text.forbidden(raw)[token]) == (FORBIDDEN in tail + text.bytes[token]), (ids, token))


def relays(count: int, r: random.Random, check: Check) -> None:
    """The embedded pair at any temperature, with caps, calls of its own and of a rule."""
    student, teacher = load_engine("warmup"), load_engine("teacher")
    seen = dict.fromkeys(["calls", "teacher tokens", "compared with the slow relay", "alone"], 0)
    for begin in range(0, count, BATCH):
        size = min(BATCH, count - begin)
        questions = [problem(r.choice(SUITES), r.randrange(10**6)).question for _ in range(size)]
        seeds = [r.randrange(2**40) for _ in range(size)]
        plain = begin % (4 * BATCH) == 0  # caps that the slow relay does not know are left out
        config = RelayConfig(
            temperature=r.choice([0.0, 1.0, 1.5, 3.0]), max_tokens=r.randint(1, 50),
            max_call_tokens=r.choice([None, 1, 7]),
            max_calls=None if plain else r.choice([None, 0, 1, 3]),
            max_teacher_tokens=None if plain else r.choice([None, 0, 5]),
            fixed_call_tokens=None if plain else r.choice([None, 6]),
            write_call=plain or r.random() < 0.7,
        )  # fmt: skip

        def places(seed: int) -> dict[int, int]:
            return {seed % 13: 1 + seed % 3, 14 + seed % 11: 9, 26 + seed % 17: 10**11}

        def rule(state: Any) -> int | None:
            return places(state.seed).get(state.position)

        relay = Relay(student, LocalTeacher(teacher), config, call_rule=rule)
        traces = relay.run(questions, seeds=seeds)
        for i, trace in enumerate(traces):
            where = (config, questions[i], seeds[i])
            consistent(trace, config, student, check, where)
            seen["calls"] += len(trace.calls)
            seen["teacher tokens"] += trace.count("t")
            if i < size // ALONE:
                alone = relay.run([questions[i]], seeds=[seeds[i]])[0]
                check((alone.completion_ids, alone.source) == (trace.completion_ids, trace.source), where)
                seen["alone"] += 1
            if plain and i < size // 2:
                slow = slow_relay(
                    student.model, teacher.model, student.tokenizer, trace.prompt_ids, end_ids=student.end_ids,
                    max_tokens=config.max_tokens, seed=seeds[i], temperature=config.temperature,
                    call_rule=places(seeds[i]).get, caps=config.max_call_tokens,
                )  # fmt: skip
                check((slow.ids, slow.source, slow.stop) == (trace.completion_ids, trace.source, trace.stop), where)
                check(slow.calls == [(c.start, c.end, c.delivered) for c in trace.answered], where)
                seen["compared with the slow relay"] += 1
    print("  " + ", ".join(f"{n} {what}" for what, n in seen.items()))


def consistent(trace: Trace, config: RelayConfig, student: Any, check: Check, where: object) -> None:
    """What holds in every trace, read from its ids and sources alone."""
    trace.check()
    check(Trace.from_dict(json.loads(trace.to_json())) == trace, where)
    ids, n = trace.completion_ids, len(trace.completion_ids)
    shown = ids[:-1] if trace.stop == "end" else ids  # the end token shows no text
    check(trace.text == student.tokenizer.decode(shown, skip_special_tokens=False), where)
    check(n <= config.max_tokens and trace.stop in STOPS and (n > 0 or trace.stop == "teacher_end"), where)
    check(trace.stop != "end" or (ids[-1] in student.end_ids and trace.source[-1] != "t"), where)
    check(not any(i in student.end_ids for i in ids[:-1]), where)

    # 1) The student's closed calls are those of the grammar, and so are the tokens that count as commands.
    spans, source, begin = [], "", 0
    while begin < n:
        end = next((k for k in range(begin, n) if (trace.source[k] == "t") != (trace.source[begin] == "t")), n)
        turn, at = [student.text.bytes[i] for i in shown[begin:end]] + [b""] * (end - len(shown) > 0), 0
        places = [(at, at := at + len(data)) for data in turn]
        mine = [] if trace.source[begin] == "t" else slow_find(b"".join(turn).decode("latin-1"))
        letters = ["s" if trace.source[begin] != "t" else "t"] * len(turn)
        for first, last, _, wrong in mine:
            touched = [k for k, (a, b) in enumerate(places) if a < last and b > first]
            if wrong != "unclosed":
                spans.append((begin + touched[0], begin + touched[-1] + 1))
                letters[touched[0] : touched[-1] + 1] = "c" * len(touched)
        source, begin = source + "".join(letters), end
    written = [(c.start, c.end) for c in trace.calls if c.end > c.start and c.status != "unclosed"]
    check((written, trace.source) == (spans, source), where)

    # 2) Nobody gets more than the caps grant.
    for call in trace.calls:
        check(call.delivered <= call.granted <= (config.max_call_tokens or call.granted), where)
        check(trace.source[call.end : call.end + call.delivered] == "t" * call.delivered, where)
    check(sum(c.delivered for c in trace.calls) == trace.count("t"), where)
    check(config.max_calls is None or len(trace.answered) <= config.max_calls, where)
    check(config.max_teacher_tokens is None or trace.count("t") <= config.max_teacher_tokens, where)


def main() -> None:
    counts = {commands: 1_000_000, answers: 10_300, rows: 20_000, relays: 3_648}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part, count in counts.items():
        parser.add_argument(f"--{part.__name__}", type=int, default=count, metavar="N", help=part.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the models are small
    failed = SimpleNamespace(count=0)

    def check(holds: bool, where: object) -> None:
        if not holds:
            failed.count += 1
            print(f"VIOLATION: {where!r}", flush=True)

    for part in counts:
        if count := getattr(args, part.__name__):
            start, failed.count = time.process_time(), 0
            part(count, random.Random(args.seed), check)
            seconds = time.process_time() - start
            print(f"{count:,} {part.__name__}: {failed.count} violations, {seconds:.0f} s of this process", flush=True)


if __name__ == "__main__":
    main()
