"""``relaylab serve`` under load: are answers those of ``decode``, does anything leak, and what does serving cost?

    python benchmarks/serve.py --seconds 120                  # 64 clients, one of three leaves or sends nonsense
    python benchmarks/serve.py --seconds 0 --rounds 5         # 16 clients against the relay in this process
    python benchmarks/serve.py --seconds 0 --rounds 0 --kill  # the teacher is a second server, and is killed
    python benchmarks/serve.py --seconds 0 --student DIR --teacher DIR --dtype bfloat16 --max-tokens 64 --count 32

The server is a process of its own. Rounds of serving and of the relay in this process alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product

import httpx2
import torch

from relaylab.relay.pair import load_pair, problem_seed
from relaylab.relay.sequence import Done, TokenEvent
from relaylab.tasks.suites import SUITES, problem

MALFORMED = [b"", b"{", b"[1]", b'{"model": 1}', b"\xff\xfe", b'{"model": "pair", "messages": "no"}', b"[" * 5000]
QUESTIONS = [problem(suite, i).question for i in range(12) for suite in SUITES]


@contextmanager
def server(*options: str, code: str | None = None) -> Iterator[tuple[subprocess.Popen, str]]:
    """``relaylab serve`` in a process of its own, and its address. ``code``: the folder of another relaylab."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "relaylab", "serve", "--name", "pair", "--port", str(port), *options]
    path = os.environ | ({"PYTHONPATH": code} if code else {})
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=path, cwd=code)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx2.get(f"{url}/health", timeout=5)
                break
            except httpx2.TransportError:
                if process.poll() is not None:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.5)
        yield process, url
    finally:
        process.kill()
        process.wait()


def body(question: str, **fields) -> dict:
    return {"model": "pair", "messages": [{"role": "user", "content": question}], **fields}


async def ask(client: httpx2.AsyncClient, url: str, data: dict, *, leave_after: int | None = None) -> tuple:
    """Status, text, tokens, and seconds to the first text of one request; None as the text if the client left."""
    begun, first, text, tokens = time.perf_counter(), None, "", 0
    if not data.get("stream"):
        reply = await client.post(f"{url}/v1/chat/completions", json=data)
        if reply.status_code != 200:
            return reply.status_code, reply.text, 0, None
        answer = reply.json()
        return 200, answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"], None
    async with client.stream("POST", f"{url}/v1/chat/completions", json=data) as reply:
        if reply.status_code != 200:
            return reply.status_code, "", 0, None
        chunks = 0
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return chunk["error"]["code"], chunk["error"]["message"], 0, None
            tokens = chunk["usage"]["completion_tokens"] if "usage" in chunk else tokens
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    first, text, chunks = first or time.perf_counter() - begun, text + piece, chunks + 1
            if leave_after is not None and chunks > leave_after:
                return 200, None, 0, first
    return 200, text, tokens, first


def gauges(url: str) -> dict[str, float]:
    lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def leaks(seen: dict[str, float]) -> str:
    rows = seen['relaylab_rows{state="running"}'] + seen['relaylab_rows{state="waiting"}']
    slots = seen['relaylab_cache_slots{model="student"}'] + seen.get('relaylab_cache_slots{model="teacher"}', 0)
    megabytes = seen["process_resident_memory_bytes"] / 1e6
    return f"{rows:.0f} rows, {slots:.0f} cache slots, {megabytes:.0f} MB, {seen['process_open_fds']:.0f} open files"


async def load(url: str, seconds: float, clients: int, expected: dict) -> None:
    """Clients of all kinds for some time. Every complete answer is compared."""
    end, seen, wrong = time.monotonic() + seconds, Counter(), []
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(number: int, client: httpx2.AsyncClient) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            kind = rng.choices(["whole", "stream", "leaves", "malformed", "oversized"], [35, 35, 20, 6, 4])[0]
            (question, temperature, seed), text = rng.choice(list(expected.items()))
            data = body(question, temperature=temperature, seed=seed, stream=kind in ("stream", "leaves"))
            if kind == "malformed":
                reply = await client.post(f"{url}/v1/chat/completions", content=rng.choice(MALFORMED))
                seen[f"malformed: {reply.status_code}"] += 1
            elif kind == "oversized":
                data = rng.choice([body("1+" * 3000), body("x" * 2**20)])
                seen[f"oversized: {(await ask(client, url, data))[0]}"] += 1
            else:
                leave = rng.randrange(8) if kind == "leaves" else None
                status, got, *_ = await ask(client, url, data, leave_after=leave)
                seen["left" if got is None else f"answered: {status}"] += 1
                if status == 200 and got is not None:
                    seen["equal" if got == text else "different"] += 1
                    if got != text:
                        wrong.append((question, temperature, seed, got, text))

    async with httpx2.AsyncClient(limits=limits, timeout=300) as client:
        await asyncio.gather(*(one(i, client) for i in range(clients)))
    print("requests:", dict(sorted(seen.items())))
    for question, temperature, seed, got, text in wrong[:3]:
        print(f"DIFFERENT at temperature {temperature}, seed {seed}: {question!r}\n  {got!r}\n  {text!r}")


def in_process(pair, questions: list[str], rows: int) -> tuple[float, float, float]:
    """Tokens a second, the same by time of the processor, and the median seconds from a free place to a first token."""
    started, cpu = time.perf_counter(), time.process_time()
    stream = pair.relay(batch_size=rows).stream(questions, seeds=[problem_seed(0, "question-0")] * len(questions))
    begun = time.perf_counter()
    free, begun_rows, waits = deque([begun] * rows), set(), []
    for event in stream:
        if isinstance(event, TokenEvent) and event.row not in begun_rows:
            begun_rows.add(event.row)
            waits.append(time.perf_counter() - free.popleft())
        elif isinstance(event, Done):
            free.append(time.perf_counter())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    tokens = sum(len(t.completion_ids) for t in stream.traces)
    return tokens / seconds, tokens / cpu, statistics.median(waits)


async def over_http(url: str, questions: list[str], clients: int, stream: bool) -> tuple[float, float, float]:
    """The same by so many clients, each of which asks its next question when it has its answer.

    The time of the processor is the server's alone.
    """
    todo, tokens, firsts = list(questions)[::-1], 0, []
    options = {"include_usage": True}

    async def one(client: httpx2.AsyncClient) -> None:
        nonlocal tokens
        while todo:
            data = body(todo.pop(), seed=0, stream=stream, stream_options=options if stream else None)
            _, _, count, first = await ask(client, url, data)
            tokens += count
            firsts.append(first)

    async with httpx2.AsyncClient(timeout=300) as client:
        begun, cpu = time.perf_counter(), gauges(url)["process_cpu_seconds_total"]
        await asyncio.gather(*(one(client) for _ in range(clients)))
        seconds, cpu = time.perf_counter() - begun, gauges(url)["process_cpu_seconds_total"] - cpu
    return tokens / seconds, tokens / cpu, statistics.median(firsts) if stream else float("nan")


def speed(urls: dict[str, str], pair, rounds: int, clients: int, count: int) -> None:
    questions = (QUESTIONS * (count // len(QUESTIONS) + 1))[:count]
    in_process(pair, questions[: 2 * clients], clients)
    for url in urls.values():
        asyncio.run(over_http(url, questions[: 2 * clients], clients, True))
    ratios: dict[str, list[float]] = {}
    for _ in range(rounds):
        ours, ours_cpu, ours_first = in_process(pair, questions, clients)
        for code, kind in product(urls, ("whole answers", "streams")):
            name, stream = code + kind, kind == "streams"
            theirs, theirs_cpu, first = asyncio.run(over_http(urls[code], questions, clients, stream))
            ratios.setdefault(f"{name}, tokens/s", []).append(theirs / ours)
            ratios.setdefault(f"{name}, tokens per second of the processor", []).append(theirs_cpu / ours_cpu)
            times = f"; first token {1000 * first:.0f} ms, in process {1000 * ours_first:.0f} ms" if stream else ""
            speeds = f"{theirs:.0f} tokens/s ({theirs_cpu:.0f} by processor), in process {ours:.0f} ({ours_cpu:.0f})"
            print(f"{name}: {speeds}{times}", flush=True)
    for name, values in ratios.items():
        print(f"{name}, served / in process: {statistics.median(values):.2f} ({min(values):.2f}, {max(values):.2f})")


async def kill_teacher(url: str, teacher: subprocess.Popen, clients: int) -> None:
    """Some answers before the teacher is killed, and some after."""
    async with httpx2.AsyncClient(timeout=300) as client:
        for name in ("before", "killed under way", "after"):
            asked = [asyncio.ensure_future(ask(client, url, body(q, seed=0))) for q in QUESTIONS[:clients]]
            if name == "killed under way":
                await asyncio.sleep(0.3)
                teacher.kill()
            results = Counter(status for status, *_ in await asyncio.gather(*asked))
            print(f"{name}: answers by status {dict(results)}; {leaks(gauges(url))}", flush=True)


async def stop(url: str, process: subprocess.Popen, text: str, question: str) -> None:
    """SIGTERM while an answer is under way: it ends whole, and the server with code 0."""
    async with httpx2.AsyncClient(timeout=300) as client:
        asked = asyncio.ensure_future(ask(client, url, body(question, temperature=0.0, seed=0, stream=True)))
        while not httpx2.get(f"{url}/health", timeout=60).json()["running"]:
            await asyncio.sleep(0)
        process.send_signal(signal.SIGTERM)
        _, got, *_ = await asked
    print(f"SIGTERM: the answer under way is {'whole' if got == text else 'NOT whole'}; exit code {process.wait(60)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="relay")
    parser.add_argument("--teacher", default="teacher")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--max-tokens", type=int, help="of an answer")
    parser.add_argument("--seconds", type=float, default=60, help="of load by all kinds of clients")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of speed")
    parser.add_argument("--rows", type=int, default=16, help="clients and rows of that comparison")
    parser.add_argument("--count", type=int, default=128, help="answers of a round")
    parser.add_argument(
        "--against", help="the folder of another relaylab, such as a git worktree: compare with it, too"
    )
    parser.add_argument("--kill", action="store_true", help="kill a teacher behind a URL")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.kill:
        teacher_options = "--student", "teacher", "--teacher", "none", "--max-tokens", "256"
        with server(*teacher_options) as (teacher, address):
            relay = "--student", options.student, "--teacher", f"{address}/v1", "--max-batch", "16"
            with server(*relay) as (_, url):
                asyncio.run(kill_teacher(url, teacher, options.rows))
    if not (options.seconds or options.rounds):
        return
    pair, expected = load_pair(options.student, options.teacher, dtype=getattr(torch, options.dtype)), {}
    pair.defaults |= {"max_tokens": options.max_tokens} if options.max_tokens else {}
    for temperature in (0.0, 1.0) if options.seconds else (0.0,):
        for seed in range(2 if options.seconds else 1):
            for question in QUESTIONS[::3] if options.seconds else QUESTIONS[:1]:
                expected[question, temperature, seed] = ""
    keys = list(expected)
    for temperature in dict.fromkeys(temperature for _, temperature, _ in keys):
        mine = [key for key in keys if key[1] == temperature]
        traces = pair.relay(temperature=temperature).run(
            [question for question, *_ in mine], seeds=[problem_seed(seed, "question-0") for *_, seed in mine]
        )
        expected |= {key: trace.teacher_view for key, trace in zip(mine, traces)}
    models = ["--student", options.student, "--teacher", options.teacher, "--dtype", options.dtype, "--max-batch", "32"]
    models += ["--max-tokens", str(options.max_tokens)] if options.max_tokens else []
    with server(*models) as (process, url):
        if options.seconds:
            asyncio.run(load(url, 5, 8, expected))  # memory grows to its size
            print("before:", leaks(gauges(url)))
            asyncio.run(load(url, options.seconds, options.clients, expected))
            deadline = time.monotonic() + 30
            while gauges(url)['relaylab_rows{state="running"}'] and time.monotonic() < deadline:
                time.sleep(0.2)
            print("after: ", leaks(gauges(url)))
        if options.rounds:
            with ExitStack() as other:
                urls = {"": url}
                if code := options.against:
                    again = server(*models, code=code)
                    urls["before, "] = other.enter_context(again)[1]
                speed(urls, pair, options.rounds, options.rows, options.count)
        asyncio.run(stop(url, process, expected[keys[0]], keys[0][0]))


if __name__ == "__main__":
    main()
