"""A relay between real pretrained models that were never trained to call: policies and forks call for the student.

    export STUDENT=.../Qwen2.5-Coder-0.5B-Instruct TEACHER=.../Qwen2.5-Coder-1.5B-Instruct     # model directories
    python benchmarks/real_pair.py --student $STUDENT --teacher $TEACHER --data gsm8k.jsonl --limit 4 --out runs/real
    python benchmarks/real_pair.py --student $STUDENT --teacher $TEACHER --data gsm8k.jsonl --limit 4 --out runs/real \
        --only fixed --server http://127.0.0.1:8000/v1 --tokenizer $TEACHER       # the same teacher, asked twice

The same questions in every setup, greedy. ``--server`` asks a server for all that the first teacher was asked, counts
how far the two agree, and relays with the server as the teacher. Traces go to --out. A handful of questions shows that
it runs, not how good it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.relay.call_rules import CallAt, CallWhenUnsure
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import graded, load_teacher
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import NoTeacher, Teacher, TeacherOutput, TeacherView, complete
from relaylab.tasks.data import load_problems
from relaylab.trace import Trace
from relaylab.views.trace_view import trace_text

ASK = "{}\nSolve it step by step, briefly. Put the final number into \\boxed{{}}."


class Noted:
    """A teacher whose answers are kept together with what was asked."""

    def __init__(self, teacher: Teacher):
        self.teacher, self.name, self.fingerprint = teacher, teacher.name, teacher.fingerprint
        self.answers: list[tuple[TeacherView, TeacherOutput]] = []
        self._views: dict[TeacherView, TeacherView] = {}

    def submit(self, views: Sequence[TeacherView]) -> None:
        self._views |= {view: replace(view, segments=list(view.segments)) for view in views}  # views grow
        self.teacher.submit(views)

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        outputs = self.teacher.poll(views, wait=wait)
        self.answers += [(self._views.pop(view), output) for view, output in outputs]
        return outputs

    def release(self, views: Sequence[TeacherView]) -> None:
        self.teacher.release(views)


def report(name: str, traces: list[Trace], seconds: float, out: Path) -> None:
    """One row of the table, and the traces' file. A fork's tokens include those taken over, its seconds do not."""
    (out / f"{name}.jsonl").write_text("".join(f"{t.to_json()}\n" for t in traces))
    tokens = sum(len(t.completion_ids) for t in traces)
    calls = [c for t in traces for c in t.answered]
    delivered, written = sum(c.delivered for c in calls), sum(c.written for c in calls)
    outcome = [f"{sum(t.correct for t in traces)}/{len(traces)}", tokens, len(calls), sum(c.forced for c in calls)]
    share = [f"{delivered}/{written}", f"{100 * delivered / tokens:.1f} %", f"{seconds:.1f}", f"{tokens / seconds:.1f}"]
    print("|", " | ".join(map(str, [name, *outcome, *share])), "|", flush=True)


def agreement(noted: Noted, server: Teacher, engine: Engine) -> None:
    """Ask the server for each noted continuation from its context; count tokens before a difference."""
    theirs = complete(server, [view for view, _ in noted.answers])
    same = total = equal = 0
    for (_, one), two in zip(noted.answers, theirs, strict=True):
        a = engine.text.encode(one.text)
        b = list(two.ids) if two.ids is not None else engine.text.encode(two.text)
        k = next((i for i, (x, y) in enumerate(zip(one.ids or a, b)) if x != y), min(len(a), len(b)))
        same, total, equal = same + k, total + len(one.ids or a), equal + (one.text == two.text)
        if one.text != two.text:
            print(f"  differs from token {k + 1} on: {one.text!r} / {two.text!r} {two.error or ''}")
    print(f"{equal} of {len(theirs)} continuations equal; {same} of {total} tokens before a first difference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", default="none", help="a directory or a URL")
    parser.add_argument("--server", help="URL of a server to compare a local teacher with")
    parser.add_argument("--tokenizer", help="directory with the tokenizer of the teacher behind a URL")
    parser.add_argument("--data", type=Path, help="questions")
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=224)
    parser.add_argument("--only", nargs="*", help="setups: student teacher (a local one) fixed unsure fork resize")
    parser.add_argument("--show", type=int, default=0, help="traces to print of each setup")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    args = parser.parse_args()
    logging.set_verbosity_error()
    student = load_engine(args.student)
    args.out.mkdir(parents=True, exist_ok=True)
    own = None if "://" in args.teacher or args.teacher == "none" else student
    own = load_engine(args.teacher) if own and args.teacher != args.student else own
    teacher = Noted(LocalTeacher(own) if own else load_teacher(args.teacher, tokenizer=args.tokenizer))
    limits = RelayConfig(max_tokens=args.max_tokens)
    problems = load_problems(args.data, limit=args.limit)
    prompts = [[{"role": "user", "content": ASK.format(p.question)}] for p in problems]
    done: dict[str, list[Trace]] = {}
    fixed = CallAt({16: 8, 48: 8, 96: 8})

    def relay(*who, **options) -> list[Trace]:
        return Relay(*who, config=limits, **options).run(prompts)

    def forks(base: str, at: Callable[[Trace], int], n: int) -> list[Trace]:
        one = Relay(student, teacher, config=limits)  # a fork is one row; two are enough to see it
        streams = [one.fork(t, at(t), call=n, prompt=p) for t, p in zip(done[base][:2], prompts)]
        return [stream.traces[0] for stream in streams if list(stream)]

    setups: dict[str, Callable[[], list[Trace]]] = {
        "student": lambda: relay(student, NoTeacher()),
        **({"teacher": lambda: relay(own, NoTeacher())} if own else {}),
        "fixed": lambda: relay(student, teacher, call_rule=fixed),
        "unsure": lambda: relay(student, teacher, call_rule=CallWhenUnsure(1.0, 8, most=6)),
        "fork": lambda: forks("student", lambda t: min(16, len(t.completion_ids) - 1), 32),
        "resize": lambda: forks("fixed", lambda t: t.answered[0].start, 32),
    }
    print("| setup | right | tokens | calls | forced | delivered/written | teacher | seconds | tokens/s |")
    print("|---" * 9 + "|")

    def measure(name: str, run: Callable[[], list[Trace]]) -> None:
        started = time.perf_counter()
        traces = run()
        seconds = time.perf_counter() - started
        done[name] = [graded(t, p) for t, p in zip(traces, problems)]
        report(name, done[name], seconds, args.out)
        for trace in done[name][: args.show]:
            print(trace_text(trace, width=110))

    for name in args.only or (["student"] if args.teacher == "none" else setups):
        measure(name, setups[name])
    if args.server:  # wants the setup "fixed" among those above
        server = load_teacher(args.server, tokenizer=args.tokenizer)
        print(server.probe())
        agreement(teacher, server, student)
        measure("server", lambda: relay(student, server, call_rule=fixed))
        for a, b in zip(done["fixed"], done["server"]):
            pairs = zip(a.completion_ids, b.completion_ids)
            k = next((i for i, (x, y) in enumerate(pairs) if x != y), len(a.completion_ids))
            print(f"  {a.id}: the relays are equal for {k} of {len(a.completion_ids)} tokens")


if __name__ == "__main__":
    main()
