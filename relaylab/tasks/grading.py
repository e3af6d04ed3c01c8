r"""Is the answer in the last ``\boxed{...}`` right? math-verify decides, behind bounds on time and memory.

A reward function reads whatever a model writes, millions of times, and one ``9^{9^{9^9}}`` must not stop a run. The
timeout of math-verify is a Unix alarm that works in main threads alone and that neither big-integer arithmetic nor a
regular expression lets through. So its work is done in a worker process that can be killed: started at the first answer
that needs it, shared by all threads, restarted when an answer breaks it, gone at exit. Its limit is processor time, so
that a busy machine does not change grades, with a wall clock behind it.

Two plain numbers, the common case, are compared here and exactly, by rules that agree with math-verify's.

Commands of the student are text like any other here: grade ``Trace.teacher_view``, not ``Trace.text``.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

CPU_SECONDS = 2.0  # for one comparison; the slowest reference answers of the benchmarks take 0.3
WALL_SECONDS = 20.0  # the backstop, and the only limit on Windows
START_SECONDS = 120.0  # to import SymPy, about 1 s on an idle machine
MEMORY_BYTES = 1 << 30  # of the worker's address space; enforced by Linux, not by macOS and Windows
MAX_LENGTH = 2000  # characters of an answer; the longest reference of the benchmarks has 255

Reason = Literal["equal", "unequal", "no_box", "unparsable", "too_long", "timeout"]


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether an answer is right, what was read from the text, and why.

    reason: ``equal``; ``unequal``; ``no_box`` (no complete box in the text); ``unparsable`` (math-verify reads at least
    one of the two as no more than a string, and the strings differ); ``too_long`` (above ``MAX_LENGTH``); ``timeout``
    (the comparison ran over its time or broke the worker).
    """

    correct: bool
    extracted: str | None
    reason: Reason


# Every alternative that begins matches, so no character is read twice: the scan is linear for any text.
_TOKEN = re.compile(
    r"\\+(?:(?P<box>(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>[-+]?\d(?:[\d.,/]*\d)?|[A-Za-z](?![A-Za-z])))?)|[{}])?"
    r"|[{}]"
)


def extract_boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` or ``\fbox{...}`` holds, or None. Time is linear in the text's length.

    Of nested boxes it is the inner one. A box without braces may hold a number or a letter, as in ``\boxed 5``.

    >>> extract_boxed(r"First \boxed{1}, no: \boxed{\frac{1}{2}}. Or \boxed{3")
    '\\frac{1}{2}'
    """
    found, found_at = None, -1
    opened: list[tuple[int, int]] = []  # of each open brace: where its box began (-1: no box), where its content begins
    for match in _TOKEN.finditer(text):
        token, box = match[0], match["box"]
        if match["bare"] is not None and match.start() > found_at:
            found, found_at = match["bare"], match.start()
        if box is None and len(token) % 2 == 0:
            continue  # an odd number of backslashes escapes the brace
        if token[-1] == "{":
            opened.append((-1 if box is None else match.start(), match.end()))
        elif token[-1] == "}" and opened:
            start, content = opened.pop()
            if start > found_at:
                found, found_at = text[content : match.end() - 1], start
    return found


def grade(text: str, answer: str) -> bool:
    r"""Whether the last box of ``text`` holds ``answer``. False, never an exception, whatever the text.

    >>> grade(r"So it is \boxed{2^{10}}.", "1,024"), grade(r"\boxed{((}", "5"), grade("It is 5.", "5")
    (True, False, False)

    Raises RuntimeError where math-verify is needed and cannot be imported.
    """
    return grade_details(text, answer).correct


def grade_details(text: str, answer: str) -> Grade:
    r"""``grade`` with the extracted answer and the reason.

    >>> grade_details(r"\boxed{\frac12}", "0.5")
    Grade(correct=True, extracted='\\frac12', reason='equal')
    """
    extracted = extract_boxed(text)
    reason = "no_box" if extracted is None else _compare(extracted, answer)
    return Grade(reason == "equal", extracted, reason)


def grade_many(texts: Iterable[str], answers: Iterable[str]) -> list[bool]:
    r"""``grade`` of each text against its own answer; pairs that come again are compared once.

    >>> grade_many([r"\boxed{4}", r"\boxed{5}"], ["4", "4"])
    [True, False]

    Raises ValueError where the two differ in length.
    """
    return [grade(text, answer) for text, answer in zip(texts, answers, strict=True)]


_NUMBER = re.compile(r"-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")


def _number(answer: str) -> Decimal | None:
    """The value of a plain number of at most 16 characters: within the precision of math-verify's floats."""
    answer = answer.strip()
    if 0 < len(answer) <= 16 and _NUMBER.fullmatch(answer) and answer[-1].isdigit():
        return Decimal(answer.replace(",", ""))
    return None


def _compare(extracted: str, answer: str) -> Reason:
    if max(len(extracted), len(answer)) > MAX_LENGTH:
        return "too_long"
    if (a := _number(extracted)) is not None and (b := _number(answer)) is not None:
        if a == b:
            return "equal"
        if abs(a - b) > Decimal("0.000001"):  # math-verify rounds floats to six places; what is closer is its to decide
            return "unequal"
    return _verify(_readable(extracted), _readable(answer))


def _readable(answer: str) -> str:
    """The answer as math-verify reads it best: no full stop at its end, and words as text, not products of letters."""
    answer = re.sub(r"(?<=[\w}])\.$", "", answer.strip())
    return rf"\text{{{answer}}}" if _WORDS.fullmatch(answer) else answer


# Groups of rollouts repeat their answers; so do hostile ones, which cost seconds each.
@lru_cache(maxsize=4096)
def _verify(extracted: str, answer: str) -> Reason:
    global _worker
    with _lock:
        if _worker is None or _worker.process.poll() is not None:
            _stop()
            _worker = _Worker()
        try:
            reply = _worker.ask([extracted, answer, CPU_SECONDS], WALL_SECONDS)
        except BaseException:  # an interrupt: the reply to this question must not be read as that to the next
            _stop()
            raise
        if reply is None or reply["last"]:
            _stop()
    return "timeout" if reply is None else reply["reason"]


class _Worker:
    """The process that runs math-verify: one JSON line in, one out. A plain child, since ``multiprocessing`` would run
    the user's script again or, forked, inherit threads' locks."""

    def __init__(self) -> None:
        path = os.pathsep.join(p for p in sys.path if p)  # what a notebook added to it counts too
        self.process = subprocess.Popen(
            [sys.executable, "-P", os.path.abspath(__file__)],  # -P: no module of this folder shadows one of SymPy's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},  # SymPy's order of terms follows hashes
        )
        try:
            hello = self.ask(None, START_SECONDS)
        except BaseException:
            self.close()
            raise
        if hello is None or hello["error"]:
            self.close()
            why = hello["error"] if hello else f"it ended or took more than {START_SECONDS:.0f} s"
            remedy = "is math-verify installed (pip install math-verify)?"
            raise RuntimeError(f"the grading worker did not start: {why}; {remedy}")

    def ask(self, question: list | None, seconds: float) -> dict | None:
        """The worker's reply, or None if it died or had to be killed."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            return None
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with suppress(OSError):  # what was left unsent has no reader
            self.process.stdin.close()


_lock = threading.Lock()
_worker: _Worker | None = None


def _stop() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
        _worker = None


def _forget() -> None:
    """In a forked child: the worker is the parent's, and the lock may have been held by a thread that is not here."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _serve() -> None:
    """The worker's side: replies to each line of standard input until that ends."""
    questions, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the libraries print must not mix with the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def reply(**data: object) -> None:
        replies.write(json.dumps(data).encode() + b"\n")

    questions.readline()
    try:
        import psutil  # not `resource`: its peak begins with the memory of the parent, torch and all
        from math_verify import parse, verify

        process = psutil.Process()
        halves = (parse(rf"\boxed{{{half}}}", parsing_timeout=None) for half in (r"x+\frac{1}{2}", r"\frac{2x+1}{2}"))
        verify(*halves, timeout_seconds=None)  # loads tables and modules on nobody's time
    except Exception as error:
        return reply(error=f"{type(error).__name__}: {error}")
    reply(error="")
    _limit_memory()

    read = lru_cache(maxsize=512)(lambda answer: parse(rf"\boxed{{{answer}}}", parsing_timeout=None))
    for line in questions:
        extracted, answer, seconds = json.loads(line)
        _limit_time(seconds)
        try:
            gold, target = read(answer), read(extracted)
            if verify(gold, target, timeout_seconds=None):
                reason = "equal"
            else:
                strings = (all(isinstance(value, str) for value in values) for values in (gold, target))
                reason = "unparsable" if any(strings) else "unequal"
        except Exception:  # SymPy's are of every kind; RecursionError and MemoryError are among them
            reason = "unparsable"
        _limit_time(0)
        last = process.memory_info().rss > MEMORY_BYTES // 2  # what remains in caches would fail the answers to come
        reply(reason=reason, last=last)
        if last:
            return


def _limit_time(seconds: float) -> None:
    """Have the system kill this process after so much processor time, in C code too; 0 takes the limit away."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has none and macOS may refuse: there time bounds memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _serve()
