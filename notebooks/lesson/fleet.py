"""How many requests does one teacher machine carry? A simulation of many students that share it, for lesson 15.

The machine batches as servers do: a step gives every row of its batch one token, and reads the prompts of new rows.
Rows that find the batch full wait in line. Each student has its own machine. Requests come at random (Poisson).
"""

from collections import deque

import numpy as np
import pandas as pd
import simpy

from relaylab.cost import HandOff, hand_offs


class TeacherMachine:
    """Serves up to ``max_batch`` rows together."""

    def __init__(self, env, prices, max_batch):
        self.env, self.prices, self.max_batch = env, prices, max_batch
        self.line, self.rows, self.busy, self.wake = deque(), [], 0.0, env.event()
        env.process(self.work())

    def serve(self, call):
        """An event that happens when the call is answered."""
        answered = self.env.event()
        self.line.append([call, max(1, call.written), answered])
        if not self.wake.triggered:
            self.wake.succeed()
        return answered

    def work(self):
        while True:
            if not self.line and not self.rows:
                self.wake = self.env.event()
                yield self.wake
            new = [self.line.popleft() for _ in range(min(len(self.line), self.max_batch - len(self.rows)))]
            self.rows += new
            seconds = self.prices.teacher.step_of(len(self.rows)) + sum(reading(call, self.prices) for call, *_ in new)
            yield self.env.timeout(seconds)
            self.busy += seconds
            for row in self.rows:
                row[1] -= 1
                if not row[1]:
                    row[2].succeed()
            self.rows = [row for row in self.rows if row[1]]


def reading(call, prices):
    """Seconds in which the teacher reads what it has not cached."""
    return (call.new + (0 if prices.cache else call.again)) / prices.teacher.prefill_rate


def relay_plans(traces, prices):
    """What each relay wants of the teacher: the student's seconds before each call and at the end, and the calls."""
    plans = []
    for trace in traces:
        calls, waits, at, unread = hand_offs(trace), [], 0, len(trace.prompt_ids)
        for call in (*calls, HandOff(len(trace.source))):  # the last is the end of the answer
            own = call.at - at
            waits.append(prices.student.seconds(unread, own) if own else 0.0)
            unread = call.delivered + (0 if own else unread)
            at = call.at + call.delivered
        plans.append((waits, calls))
    return plans


def teacher_plans(traces):
    """The same requests if the teacher writes everything."""
    return [([0.0, 0.0], [HandOff(0, len(t.prompt_ids), 0, len(t.source) - t.count("c"))]) for t in traces]


def simulate(plans, prices, max_batch, *, rate, requests=1000, seed=0):
    """Send requests, drawn from the plans, at ``rate`` per second. The first tenth is not in the latencies."""
    env, rng = simpy.Environment(), np.random.default_rng(seed)
    machine, latency = TeacherMachine(env, prices, max_batch), np.zeros(requests)
    starts = rng.exponential(1.0, requests).cumsum() / rate

    def request(i, waits, calls):
        yield env.timeout(starts[i])
        for wait, call in zip(waits, calls):
            yield env.timeout(wait + prices.network_delay / 2)
            yield machine.serve(call)
            yield env.timeout(prices.network_delay / 2)
        yield env.timeout(waits[-1])
        latency[i] = env.now - starts[i]

    for i, k in enumerate(rng.integers(len(plans), size=requests)):
        env.process(request(i, *plans[k]))
    env.run()
    seconds, settled = env.now - starts[0], latency[requests // 10 :]
    p50, p95 = np.percentile(settled, [50, 95])
    result = {"rate": rate, "throughput": requests / seconds, "mean": settled.mean(), "p50": p50, "p95": p95}
    return result | {"utilisation": machine.busy / seconds}


def load_curve(systems, prices, max_batch, rates, **options):
    """``simulate`` of each system at each rate; one row each."""
    rows = [
        {"system": name} | simulate(plans, prices, max_batch, rate=rate, **options)
        for name, plans in systems.items()
        for rate in rates
    ]
    return pd.DataFrame(rows)


def capacity(plans, prices, max_batch):
    """Requests per second that no machine exceeds: its batch is always full. Infinite if nobody calls."""
    token = prices.teacher.step_of(max_batch) / max_batch
    busy = np.mean([sum(reading(call, prices) + call.written * token for call in calls) for _, calls in plans])
    return 1 / busy if busy else np.inf


def carried(plans, prices, max_batch, *, slowdown=2.0, **options):
    """The highest rate at which 95 % of the requests take at most ``slowdown`` times as long as on an empty machine."""
    low, high = 0.0, capacity(plans, prices, max_batch)
    if np.isinf(high):
        return high
    step, delay = prices.teacher.step_of(1), prices.network_delay
    alone = [sum(w) + sum(delay + reading(call, prices) + call.written * step for call in c) for w, c in plans]
    limit = slowdown * np.percentile(alone, 95)
    for _ in range(8):
        middle = (low + high) / 2
        good = simulate(plans, prices, max_batch, rate=middle, **options)["p95"] <= limit
        low, high = (middle, high) if good else (low, middle)
    return low


def projection(systems, prices, max_batch, *, requests_per_second, **options):
    """Teacher machines and students at work for a load; machines are supposed to share it evenly."""
    rows = []
    for name, plans in systems.items():
        one, working = carried(plans, prices, max_batch, **options), np.mean([sum(waits) for waits, _ in plans])
        replicas, students = np.ceil(requests_per_second / one), np.ceil(requests_per_second * working)
        rows.append({"system": name, "carried": one, "replicas": replicas, "students": students})
    return pd.DataFrame(rows)
