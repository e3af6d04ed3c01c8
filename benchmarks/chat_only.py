"""What --chat-only costs: one model on one server as the teacher, once by its token ids and once by chats alone.

    python benchmarks/chat_only.py --student $STUDENT --server http://127.0.0.1:8000/v1 --tokenizer $TEACHER \
        --out runs/chat-only

The questions are those of real_study.py at which the entropy of the student's own answer rises above --threshold. Calls
are silent, all is greedy, and one request is under way at a time. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_study import MAX_TOKENS, suite_questions

import relaylab as rl
from relaylab.engine.load import load_engine
from relaylab.evaluation.stats import mean, paired
from relaylab.files import LineWriter, read_lines
from relaylab.relay.api_chat_only import continuation
from relaylab.relay.api_client import Answer, ServerError
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.pair import load_teacher
from relaylab.relay.server_probe import ServerProbe
from relaylab.relay.teachers import Teacher, TeacherOutput, TeacherView
from relaylab.trace import TEACHER, Trace

BATCH = 34  # questions decoded together
SECONDS = 600.0  # for an answer of a server on a busy machine


def noting(teacher: Teacher, writer: LineWriter) -> APITeacher:
    """Every request of this teacher is written down: the answer so far, the reply, its counts and its seconds."""
    assert isinstance(teacher, APITeacher), "the server is named by its URL"
    ask, request, place = teacher._client.ask, teacher._request, {}
    teacher.probe()

    def requesting(view: TeacherView, server: ServerProbe) -> TeacherOutput:
        nonlocal place
        place = {"question": view.messages[-1]["content"], "begun": view.text}
        return request(view, server)

    def asking(path: str, body: dict[str, Any] | None = None, **options: Any) -> Answer:
        began = time.perf_counter()
        reply = ask(path, body, **options)
        row = place | {"path": path, "text": reply.text, "prompt": reply.prompt, "written": reply.written}
        writer.write_line(json.dumps(row | {"seconds": time.perf_counter() - began}))
        return reply

    teacher._client.ask, teacher._request = asking, requesting
    return teacher


def kind(request: dict[str, Any]) -> str:
    """What became of a reply to a chat: it is ``whole``, its beginning was ``cut``, or it was no use: why."""
    try:
        kept = continuation(request["text"], request["begun"])
    except ServerError as error:
        return str(error).partition(":")[0]
    return "whole" if kept.strip() == request["text"].strip() else "cut"


def first_calls(exact: list[Trace], chat: list[Trace]) -> list[tuple[list[str], list[str]]]:
    """The pieces that both ways delivered at the first call of each question, if it is not at the very beginning."""
    firsts = [(a, b, a.calls[0], b.calls[0]) for a, b in zip(exact, chat) if a.calls and b.calls]
    same = [f for f in firsts if f[0].completion_ids[: f[2].start] == f[1].completion_ids[: f[3].start]]
    delivered = lambda trace, call: trace.pieces[call.end : call.end + call.delivered]  # noqa: E731
    return [(delivered(a, x), delivered(b, y)) for a, b, x, y in same if x.start]


def described(traces: list[Trace], requests: list[dict[str, Any]]) -> str:
    """The calls of one way, in words. An answer with a failed call is made again by the next run."""
    requests = [*{(r["question"], r["begun"]): r for r in requests}.values()]
    calls = [c for t in traces for c in t.calls]
    answered = [c for c in calls if c.status == "answered"]
    share = sum(t.count(TEACHER) for t in traces) / sum(len(t.completion_ids) for t in traces)
    text = f"    {len(calls)} calls, {len(calls) - len(answered)} failed; {100 * share:.1f} % teacher tokens, "
    text += f"{np.mean([c.delivered for c in answered]):.1f} delivered a call; a request: "
    means = [np.mean([r[what] for r in requests]) for what in ("written", "prompt", "seconds")]
    text += "{:.1f} tokens written, {:.0f} read, {:.1f} s".format(*means)
    kinds = [kind(r) for r in requests if r["begun"] and "chat" in r["path"]]
    return text + "".join(f"; {count} {name}" for name, count in Counter(kinds).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--server", required=True, help="the teacher's URL, or URL#model")
    parser.add_argument("--tokenizer", required=True, help="a folder with the teacher's tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=2.368, help="nats of entropy above which the student calls")
    parser.add_argument("--n", type=int, nargs="+", default=[4], help="tokens of a call")
    parser.add_argument("--count", type=int, default=34, help="questions of each of three suites")
    asked = parser.parse_args()
    options = {"timeout": SECONDS, "concurrency": 1}
    ways = {"exact": {"tokenizer": asked.tokenizer}, "chat-only": {"mode": "chat_only"}}
    student, tests = load_engine(asked.student, dtype=torch.bfloat16), suite_questions(range(asked.count))
    how: dict[str, Any] = {"max_tokens": MAX_TOKENS, "batch_size": BATCH, "record": True}

    # 1) The questions: those at which a call is made, which the student's own answer shows.
    alone = rl.Pair(student, rl.NoTeacher()).decode(tests, out=asked.out / "student.jsonl", **how)
    unsure = [k for k, t in enumerate(alone) if any((e or 0) > asked.threshold for e in t.entropies or ())]
    right = {"student": np.array([float(bool(alone[k].correct)) for k in unsure])}
    print(f"{len(unsure)} of {len(tests)} questions; student: right {mean(right['student'])}", flush=True)
    for n in asked.n:
        # 2) Their answers, with the same server asked in two ways.
        made: dict[str, list[Trace]] = {}
        for name, own in ways.items():
            teacher, file = load_teacher(asked.server, **own, **options), f"{asked.threshold:g}-{n}-{name}"
            with LineWriter(asked.out / f"{file}.requests.jsonl") as writer:
                made[name] = rl.Pair(student, noting(teacher, writer)).decode(
                    [tests[k] for k in unsure], call_rule=rl.CallWhenUnsure(asked.threshold, n), write_call=False,
                    out=asked.out / f"{file}.jsonl", **how,
                )  # fmt: skip
            right[name] = np.array([float(bool(t.correct)) for t in made[name]])
            print(f"n={n}, {name}: right {mean(right[name])}, minus student {paired(right[name], right['student'])}")
            print(described(made[name], [*read_lines(writer.path)]), flush=True)
        # 3) How far they agree.
        firsts = first_calls(made["exact"], made["chat-only"])
        same = [np.mean([a[:m] == b[:m] for a, b in firsts]) for m in (1, n)]
        print(f"    chat-only minus exact {paired(right['chat-only'], right['exact'])}; of {len(firsts)} first calls")
        print(f"    {100 * same[0]:.0f} % have the same first token, {100 * same[1]:.0f} % the same text", flush=True)


if __name__ == "__main__":
    main()
