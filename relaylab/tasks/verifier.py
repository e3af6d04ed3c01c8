r"""math-verify in a process that can be killed, with limits on time and memory.

A reward function reads whatever a model writes, and one ``9^{9^{9^9}}`` must not stop a run. math-verify's own timeout
is an alarm, which big integers and regular expressions do not let through. So one process of its own does the work:
started at the first answer that needs it, shared by all threads, restarted when an answer breaks it, gone at exit. Its
limit is processor time, so that a busy machine does not change grades. A wall clock stands behind it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import IO, Any, Literal, cast

CPU_SECONDS = 2.0  # for one comparison; the slowest reference answers of the benchmarks take 0.3
WALL_SECONDS = 120.0 if hasattr(signal, "setitimer") else 20.0  # the backstop; on Windows the only limit
START_SECONDS = 600.0  # to import SymPy: about 2 s of processor time, which took 100 s with nine programs on one core
MEMORY_BYTES = 1 << 30  # of the worker's address space; enforced by Linux, not by macOS and Windows

Reason = Literal["equal", "unequal", "no_box", "unparsable", "too_long", "timeout"]


# Groups of rollouts repeat their answers; so do hostile ones, which cost seconds each.
@lru_cache(maxsize=4096)
def ask_math_verify(written: str, answer: str, tolerance: float = 0.0) -> Reason:
    """Whether two expressions are equal.

    Raises:
        RuntimeError: if the worker does not start, as without math-verify.
    """
    with _lock:
        reply, killed = _ask_worker([written, answer, tolerance, CPU_SECONDS])
        if killed:  # by the system, which may have been short of memory for another program's sake
            reply, _ = _ask_worker([written, answer, tolerance, CPU_SECONDS])
    return "timeout" if reply is None else reply["reason"]


def _ask_worker(question: list) -> tuple[dict | None, bool]:
    """The worker's reply, None if it died of the question; and whether somebody else killed it."""
    global _worker
    if _worker is None or _worker.process.poll() is not None:
        _stop()
        _worker = _Worker()
    start = time.monotonic()
    try:
        reply = _worker.ask(question, WALL_SECONDS)
    except BaseException:  # an interrupt: the reply to this question must not be read as that to the next
        _stop()
        raise
    killed = reply is None and _worker.process.wait() == -9 and time.monotonic() - start < WALL_SECONDS
    if reply is None or reply["last"]:
        _stop()
    return reply, killed


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
        self.stdin, self.stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
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
            self.stdin.write(json.dumps(question).encode() + b"\n")
            self.stdin.flush()
            line = self.stdout.readline()
        except OSError:
            return None
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        with suppress(OSError):  # what was left unsent has no reader
            self.stdin.close()


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
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)


# The worker's side ----------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Reply to each line of standard input until that ends."""
    questions, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the libraries print must not mix with the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def reply(**data: object) -> None:
        replies.write(json.dumps(data).encode() + b"\n")

    questions.readline()
    try:
        import psutil  # not `resource`: its peak begins with the memory of the parent, torch and all

        process = psutil.Process()
        _decide(r"x+\frac{1}{2}", r"\frac{2x+1}{2}", 0.0)  # loads tables and modules on nobody's time
    except Exception as error:
        return reply(error=f"{type(error).__name__}: {error}")
    reply(error="")
    _limit_memory()
    for line in questions:
        written, answer, tolerance, seconds = json.loads(line)
        _limit_time(seconds)
        try:
            reason = _decide(written, answer, tolerance)
        except Exception:  # SymPy's are of every kind; RecursionError and MemoryError are among them
            reason = "unparsable"
        _limit_time(0)
        last = process.memory_info().rss > MEMORY_BYTES // 2  # what remains in caches would fail the answers to come
        reply(reason=reason, last=last)
        if last:
            return


@lru_cache(maxsize=512)
def _parsed(text: str) -> list[Any]:
    import sympy
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    rules = replace(LatexExtractionConfig().normalization_config, units=False)  # a last `t` is no tonne: see quantities
    configs = [LatexExtractionConfig(normalization_config=rules), ExprExtractionConfig()]
    found: list[Any] = parse(rf"\boxed{{{text}}}", configs, parsing_timeout=0)
    if found and isinstance(found[0], sympy.Basic):
        i = {symbol: sympy.I for symbol in found[0].free_symbols if str(symbol) == "i"}  # a symbol to math-verify
        found[0] = found[0].xreplace(i)
    return found


def _decide(written: str, answer: str, tolerance: float) -> Reason:
    from math_verify import verify

    gold, target = _parsed(answer), _parsed(written)
    if any(all(isinstance(value, str) for value in values) for values in (gold, target)):
        return "equal" if verify(gold, target, timeout_seconds=None) else "unparsable"
    verdict = _same_value(gold[0], target[0], tolerance)
    if verdict is None:
        verdict = verify(gold, target, timeout_seconds=None) or _same_function(gold[0], target[0])
    return "equal" if verdict else "unequal"


def _same_value(gold: Any, target: Any, tolerance: float) -> bool | None:
    """Whether two constants are equal: rationals exactly, others to 40 digits, or to six if one is a decimal. None if
    they are no constants. math-verify rounds to six places, so tiny powers are all zero there."""
    import sympy

    if not all(isinstance(side, sympy.Expr) and not side.free_symbols and _is_smooth(side) for side in (gold, target)):
        return None
    decimal = gold.has(sympy.Float) or target.has(sympy.Float)
    a, b = (side.replace(lambda e: e.is_Float, lambda e: sympy.Rational(str(e))) for side in (gold, target))
    rough_a, rough_b = (sympy.N(side, 20) for side in (a, b))
    if not (rough_a.is_number and rough_b.is_number and rough_a.is_finite and rough_b.is_finite):
        return None
    apart, size = abs(rough_a - rough_b), abs(rough_a)
    if apart > max(tolerance, 1e-5 * size):
        return False
    a, b = a.doit(), b.doit()
    if tolerance:
        return bool(abs(a - b) <= sympy.Rational(str(tolerance)))
    if a.is_Rational and b.is_Rational:
        return a == b
    if decimal:
        return bool(apart <= 5e-7 * min(1, size))
    return bool(abs(sympy.N(a, 60) - sympy.N(b, 60)) <= sympy.Float("1e-40") * size)


def _same_function(gold: Any, target: Any) -> bool:
    """Whether two expressions have the same values at positive points, where roots of powers are powers."""
    import sympy

    sides = gold, target
    if not all(isinstance(side, sympy.Expr) and side.free_symbols and _is_smooth(side) for side in sides):
        return False
    names = [sorted(side.free_symbols, key=str) for side in sides]
    if list(map(str, names[0])) != list(map(str, names[1])):
        return False
    for point in range(4):
        values = [sympy.Rational(3 + 7 * point + 5 * k, 11 + 2 * k) for k in range(len(names[0]))]
        a, b = (
            sympy.N(side.xreplace(dict(zip(own, values, strict=True))).doit(), 40)
            for side, own in zip(sides, names, strict=True)
        )
        if not (a.is_finite and b.is_finite and abs(a - b) <= sympy.Float("1e-25") * (1 + abs(a))):
            return False
    return True


def _is_smooth(side: Any) -> bool:
    """No steps, sets or unknown functions; no even root of an even power, whose sign would be lost."""
    import sympy
    from sympy.functions.elementary import hyperbolic, trigonometric

    smooth = (sympy.Add, sympy.Mul, sympy.Pow, sympy.exp, sympy.log, sympy.factorial, sympy.binomial, sympy.Number)
    smooth += (sympy.NumberSymbol, sympy.Symbol, sympy.UnevaluatedExpr, hyperbolic.HyperbolicFunction)
    smooth += (trigonometric.TrigonometricFunction, trigonometric.InverseTrigonometricFunction, type(sympy.I))

    def loses_sign(part: Any) -> bool:
        root = part.is_Pow and part.exp.is_Rational and part.exp.q % 2 == 0
        return root and any(power.exp.is_even and power.base.free_symbols for power in part.base.atoms(sympy.Pow))

    return all(isinstance(part, smooth) and not loses_sign(part) for part in sympy.preorder_traversal(side))


def _limit_time(seconds: float) -> None:
    """Have the system kill this process after so much processor time, in C code too; 0 takes the limit away."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    """Bound the memory of this process. Windows has no such limit and macOS may refuse: there time bounds memory."""
    if sys.platform != "win32":
        import resource

        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _serve()
