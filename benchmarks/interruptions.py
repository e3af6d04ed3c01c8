"""Kill, interrupt and starve the commands: the same command again ends with what an undisturbed one leaves.

    python benchmarks/interruptions.py kill                  # SIGKILL
    python benchmarks/interruptions.py interrupt             # SIGINT and SIGTERM in turn: exit code 130, and a word
    python benchmarks/interruptions.py full-disk             # as root, on a tmpfs that is nearly full
    python benchmarks/interruptions.py kill --only decode --hits 40

Each command runs in a forked process of its own, with everything imported, so that the hits fall into its work. A hit
comes after a random share of the processor time that the undisturbed command took. ``chaos.py`` does this to sweeps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
from chaos import alive

import relaylab.cli as cli
from relaylab.engine.load import checksum
from relaylab.trace import read_traces
from relaylab.training import grpo, warmup  # noqa: F401 - imported before the forks

CLOCKS = ("latency", "seconds", "step_time", "mean_latency")
LOST = "relaylab: " + "a fault of relaylab"
Result = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command line in a folder, what it leaves that must not depend on hits, and how often it is hit."""

    words: str
    left: Callable[[Path], Result]
    hits: int
    signals: int = 4


def files(*patterns: str) -> Callable[[Path], Result]:
    """The bytes of files."""
    return lambda home: {str(p.relative_to(home)): p.read_bytes() for q in patterns for p in sorted(home.glob(q))}


def traces(path: Path) -> list[str]:
    """The traces of a file in the order of their ids, without what the clock put there."""
    return sorted(json.dumps(_timeless(t.to_dict()), sort_keys=True) for t in read_traces(path))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in CLOCKS}
    if isinstance(value, float):
        return round(value, 4)  # statistics differ in their last bits between batches
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def trained(home: Path) -> Result:
    metrics = [_timeless(json.loads(line)) for line in (home / "run" / "metrics.jsonl").open()]
    metrics = [{k: v for k, v in line.items() if "time" not in k} for line in metrics]
    rollouts = {p.name: traces(p) for p in sorted((home / "run" / "rollouts").glob("*.jsonl"))}
    return files("run/student/*", "run/config.json", "run/rates.jsonl")(home) | {"m": metrics, "r": rollouts}


SUITES = "--suite savings --suite depot"
COMMANDS = {
    "decode": Command(
        f"decode {SUITES} --limit 10 --batch-size 4 --temperature 1 --call-every 30 --max-tokens 80 --out t.jsonl",
        lambda home: {"traces": traces(home / "t.jsonl")}, 18, 6,
    ),
    "filter": Command(
        f"filter {SUITES} --limit 4 --samples 2 --batch-size 4 --max-tokens 80 --out r.jsonl", files("r.jsonl"), 7
    ),
    "evaluate": Command(
        "evaluate --suite tiles --limit 3 --training 4 --batch-size 2 --max-tokens 60 --out ev --methods "
        "student,teacher,relay,router:p=0.3,entropy,cascade:share=0.5,citer",
        files("ev/table.csv", "ev/summary.csv", "ev/config.json"), 14, 6,
    ),
    "shards": Command(
        "evaluate --suite tiles --limit 6 --batch-size 2 --max-tokens 60 --out ev --methods student,relay --shard 1/2",
        lambda home: {"traces": [traces(p) for p in sorted(home.glob("ev/traces/*/*.jsonl"))]}, 6, 2,
    ),
    "train": Command(
        "train embedded/relay --num_problems 4 --filter_threshold 0 --max_steps 8 --save_steps 2 --use_cpu true "
        "--per_device_train_batch_size 4 --num_generations 4 --max_completion_length 40 --output_dir run",
        trained, 21, 6,
    ),
    "warmup": Command(
        "warmup --suite savings --limit 6 --max-steps 6 --per-device-train-batch-size 2 --max-tokens 160 --check 2 "
        "--out w", files("w/*"), 7,
    ),
    "zoo": Command("zoo train student --steps 2 --threads 1 --out z", lambda h: {"z": checksum(h / "z")}, 5, 2),
    "judge": Command(
        "judge ../traces.jsonl --server SERVER --max-requests 400 --cache c.jsonl",
        lambda home: {"cache": sorted((home / "c.jsonl").read_text().splitlines())}, 4, 2,
    ),
}  # fmt: skip


class Server:
    """A chat model that answers "yes" after a while, and counts its questions."""

    def __init__(self) -> None:
        self.asked, seen = Path(tempfile.mkdtemp()) / "asked", self
        body = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}).encode()

        class Handler(BaseHTTPRequestHandler):
            log_message = lambda *_: None  # noqa: E731

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                with seen.asked.open("a") as file:
                    file.write("x")
                time.sleep(0.02)
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        self.pid = os.fork()
        if self.pid == 0:
            server.serve_forever()


def start(words: list[str], home: Path) -> psutil.Process:
    """The command in a forked process; what it prints is in ``home.log``."""
    pid = os.fork()
    if pid:
        return psutil.Process(pid)
    code = 1
    try:
        log = os.open(f"{home}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(home)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["relaylab", *words]
        cli.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(words: list[str], home: Path, *, hit: int = 0, after: float = 1e9) -> tuple[int, float]:
    """The exit code (below 0: the signal that ended it) and the processor time.

    ``hit`` is sent after ``after`` seconds of it.
    """
    process, used, family, began = start(words, home), 0.0, [], time.monotonic()
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used = times.user + times.system
            if used >= after:
                family, after = process.children(recursive=True), 1e9
                process.send_signal(hit)
        if time.monotonic() - began > 1500:
            raise RuntimeError(f"{words} does not end")
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
    patience = time.monotonic() + 60
    while any(map(alive, family)) and time.monotonic() < patience:
        time.sleep(0.05)
    if left := [p for p in family if alive(p)]:
        raise RuntimeError(f"{words[0]} left processes behind: {left}")
    return code, used


def hits(name: str, command: Command, how: list[int], count: int, home: Path, rng: random.Random) -> Iterator[str]:
    """Hit a command until it was hit so often; yields what is wrong."""
    words, log = _words(command), Path(f"{home}.log")
    home.mkdir()
    code, whole = run(words, home)
    if code:
        raise RuntimeError(f"the undisturbed {name} failed:\n{log.read_text()[-3000:]}")
    expected, done, round_ = command.left(home), 0, 0
    while done < count:
        shutil.rmtree(home)
        home.mkdir()
        for _ in range(min(5, count - done)):
            number = how[done % len(how)]
            code, _ = run(words, home, hit=number, after=rng.uniform(0.02, 0.5) * whole)
            said = log.read_text(errors="replace")
            if code == 0:
                break  # it was faster than the hit
            done += 1
            if number == signal.SIGKILL and code != -signal.SIGKILL:
                yield f"{name}: exit {code}: {said[-300:]}"
            if number != signal.SIGKILL and (code != 130 or "same c" not in said or "Traceback" in said):
                yield f"{name}: {signal.Signals(number).name}: exit {code}: {said[-300:]}"
        code, _ = run(words, home)
        if code or command.left(home) != expected:
            different = [k for k, v in command.left(home).items() if v != expected.get(k)] if not code else ""
            yield f"{name}: after hits: exit {code}, different: {different} {log.read_text()[-300:] if code else ''}"
        round_ += 1
    print(f"{name}: {done} hits in {round_} folders", flush=True)


def full_disk(name: str, command: Command, home: Path, rng: random.Random) -> Iterator[str]:
    """Let the disk be full after some kB, three times; then give it room."""
    words, log = _words(command), Path(f"{home}.log")
    home.mkdir()
    code, _ = run(words, home)
    expected = command.left(home)
    size = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", home], check=True)
    full = 0
    try:
        for _ in range(3):
            room = int(rng.uniform(0.1, 0.9) * size)
            free = shutil.disk_usage(home).free
            with open(home / "filler", "wb") as file:
                file.write(b"\0" * max(0, free - room))
            code, _ = run(words, home)
            said = log.read_text(errors="replace")
            (home / "filler").unlink()
            full += code != 0
            if "Traceback" in said or LOST in said or (code and "if the disk is full" not in said):
                yield f"{name}: {room} bytes of room: exit {code}: {said[-400:]}"
        code, _ = run(words, home)
        if code or command.left(home) != expected:
            yield f"{name}: after a full disk: exit {code}: {log.read_text()[-400:]}"
    finally:
        subprocess.run(["umount", "-l", home], check=True)
    print(f"{name}: the disk was full {full} times", flush=True)


def _words(command: Command) -> list[str]:
    return [" ".join(word.split(",")) if "student," in word else word for word in command.words.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "interrupt", "full-disk"))
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--hits", type=int, help="of each command, instead of the usual number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit("this system has no fork: interrupt the commands on Linux or macOS")
    rng, bad, server = random.Random(options.seed), Counter[str](), Server()
    try:
        with tempfile.TemporaryDirectory(prefix="relaylab-interruptions-") as name:
            home = Path(name)
            if "judge" in options.only:
                (home / "judged").mkdir()
                if run([*_words(COMMANDS["decode"])[:-1], "../traces.jsonl"], home / "judged")[0]:
                    raise RuntimeError("the traces to judge could not be made")
            for key in options.only:
                command = COMMANDS[key]
                command = replace(command, words=command.words.replace("SERVER", server.url))
                if options.what == "full-disk":
                    found = full_disk(key, command, home / key, rng)
                else:
                    how = [signal.SIGKILL] if options.what == "kill" else [signal.SIGINT, signal.SIGTERM]
                    count = options.hits or (command.hits if options.what == "kill" else command.signals)
                    found = hits(key, command, how, count, home / key, rng)
                for text in found:
                    bad[key] += 1
                    print("BAD", text, flush=True)
    finally:
        os.kill(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
    if "judge" in options.only:
        print(f"questions that the judge was asked: {server.asked.stat().st_size}")
    print(f"bad: {dict(bad) or 'none'}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
