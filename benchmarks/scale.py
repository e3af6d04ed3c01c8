"""The numbers of docs/scale.md: hand-offs over a network, and pooled teachers with and without affinity. No model runs.

python benchmarks/scale.py [--requests 300]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import simpy

from relaylab.cost import HandOff, Prices, regular_trace, roofline

sys.path.append(str(Path(__file__).parents[1] / "notebooks"))
from lesson.fleet import TeacherMachine, capacity, relay_plans

CARD = {"flops": 989e12, "bandwidth": 3.35e12}  # FLOP/s in bf16, bytes/s
PRICES = Prices(student=roofline(1.7e9, **CARD), teacher=roofline(8e9, **CARD), network_delay=0.005)
ROWS = 64  # decoded together on one machine
SHAPE = {"prompt": 150, "tokens": 1000, "command_tokens": 8}
KINDS = {"1 call of 10": (1, 10), "10 calls of 1": (10, 1), "10 calls of 20": (10, 20)}


def hand_off_table() -> pd.DataFrame:
    """Seconds of one hand-off of 10 tokens late in an answer: the way there and back, the reading, the writing."""
    rows = []
    for place, delay in {"one machine": 0.0, "one rack": 0.0005, "one region": 0.005, "the internet": 0.05}.items():
        for cache in (True, False):
            read = (100 if cache else 1000) / (PRICES.teacher.prefill_rate or 1)
            write = 10 * PRICES.teacher.step_of(1)
            times = {"delay": delay, "reading": read, "writing": write, "total": delay + read + write}
            row = {"way": place, "prefix cache": cache} | {f"{k} (ms)": 1e3 * v for k, v in times.items()}
            rows.append(row | {"network (%)": 100 * delay / times["total"]})
    return pd.DataFrame(rows)


def pooled(plans: list, machines: int, rate: float, requests: int, *, affinity: bool) -> dict[str, float]:
    """95th percentile of the latency if the calls of all requests share a pool of teachers.

    With ``affinity`` a request stays with the machine of its first call, which still has its prefix. Without it each
    call goes to the shortest line, and a machine that did not have the last call reads the whole answer.
    """
    env, rng = simpy.Environment(), np.random.default_rng(0)
    pool, latency = [TeacherMachine(env, PRICES, ROWS) for _ in range(machines)], np.zeros(requests)
    starts = rng.exponential(1.0, requests).cumsum() / rate

    def shortest() -> TeacherMachine:
        loads = [len(m.line) + len(m.rows) for m in pool]
        return pool[rng.choice(np.flatnonzero(np.array(loads) == min(loads)))]

    def request(i: int, waits: list[float], calls: tuple[HandOff, ...]):
        yield env.timeout(starts[i])
        machine = None
        for wait, call in zip(waits, calls):
            yield env.timeout(wait + PRICES.network_delay / 2)
            chosen = machine if affinity and machine else shortest()
            kept = chosen is machine or machine is None
            machine = chosen
            yield machine.serve(call if kept else replace(call, new=call.new + call.again, again=0))
            yield env.timeout(PRICES.network_delay / 2)
        yield env.timeout(waits[-1])
        latency[i] = env.now - starts[i]

    for i, k in enumerate(rng.integers(len(plans), size=requests)):
        env.process(request(i, *plans[k]))
    env.run()
    busy = sum(m.busy for m in pool) / machines / (env.now - starts[0])
    return {"p95 (s)": float(np.percentile(latency[requests // 10 :], 95)), "busy (%)": 100 * busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300, help="of each machine")
    args = parser.parse_args()
    print(hand_off_table().round(2).to_string(index=False))
    body = {"prompt": [100_000] * 1150, "max_tokens": 512, "return_token_ids": True}
    print(f"\na request with a prefix of 1150 tokens: {len(json.dumps(body))} bytes\n")
    rows = []
    for kind, (calls, length) in KINDS.items():
        plans = relay_plans([regular_trace(calls=calls, call_tokens=length, **SHAPE)], PRICES)
        one = capacity(plans, PRICES, ROWS)
        for machines in (1, 2, 8):
            for share in (0.5, 0.8):
                rate = share * machines * one
                requests = args.requests * machines
                both = {a: pooled(plans, machines, rate, requests, affinity=a) for a in (True, False)}
                rows.append({"calls": kind, "machines": machines, "load (%)": 100 * share, "requests/s": rate}
                            | {f"{k}, affinity": v for k, v in both[True].items()}
                            | {f"{k}, any": v for k, v in both[False].items()})  # fmt: skip
    print(pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
