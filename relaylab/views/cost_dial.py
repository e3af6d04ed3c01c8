"""The cost dial: prices, sizes, delay and cache as sliders, and the cost against the teacher's share of the tokens.

The equations are those of ``cost.py`` (docs/cost.md) for regular responses. The page works without a kernel,
so it computes them by a port (``cost_dial.js``); a test compares the two.
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict, replace

from relaylab.cost import Prices, cost_sweep, roofline
from relaylab.views.evaluation_figures import MEASURE_NAMES
from relaylab.views.theme import Html
from relaylab.views.trace_view import plural
from relaylab.views.widget import static_view

CALL_TOKENS = (1, 10, 100)  # of the three lines; the chosen point at the start is on the first
CALLS, SHAPE = 10, {"prompt": 150, "tokens": 1000, "command_tokens": 8}  # at the start
MAX_TOKENS = 20_000  # of a response: the page steps through every call of it at each move of a slider


def example_prices() -> Prices:
    """The worked example of docs/cost.md: 1.7B and 8B on an H100's data sheet, with assumed prices and delay.

    >>> example_prices().teacher.output_price
    4
    """
    student, teacher = (roofline(size, flops=989e12, bandwidth=3.35e12) for size in (1.7e9, 8e9))
    student = replace(student, input_price=0, output_price=0)
    teacher = replace(teacher, input_price=1, cached_price=0.25, output_price=4)
    return Prices(student=student, teacher=teacher, network_delay=0.05)


def cost_dial(prices: Prices | None = None) -> Html:
    """The dial: lines are calls of 1, 10 and 100 tokens, more and more of them. The page has a control for each number.

    A model made f times as large becomes f times as slow, as on the roofline.

    Args:
        prices: Sizes, speeds, prices and delay at the start; by default those of docs/cost.md.

    >>> cost_dial()
    Cost dial: 10 calls of 1 token, 0.926 % of the tokens; FLOPs 115 %, price 59.1 %, time to the answer 34.2 %, ...
    """
    prices = prices or example_prices()
    one = {"network_delays": [prices.network_delay], "caches": [prices.cache], "batches": [prices.teacher.batch]}
    row = cost_sweep(prices, **SHAPE, calls=[CALLS], call_tokens=[CALL_TOKENS[0]], **one).iloc[0]
    costs = ", ".join(f"{name} {_percent(row[key])}" for key, name in MEASURE_NAMES.items())
    label = (
        f"Cost dial: {CALLS} calls of {plural(CALL_TOKENS[0], 'token')}, {_percent(row.teacher_share)} of the tokens; "
        f"{costs}, all of the teacher alone."
    )
    state = {"prices": asdict(prices), "shape": SHAPE | {"calls": CALLS, "call_tokens": CALL_TOKENS[0]}}
    state |= {"lines": CALL_TOKENS, "measure": "flops", "measures": MEASURE_NAMES, "longest": MAX_TOKENS}
    return static_view("cost_dial", state, label=label, words=f"<p>{html.escape(label)}</p>{_words(prices)}")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if math.isfinite(share) else "unknown"


def _words(prices: Prices) -> str:
    """The settings at the start."""
    cache = "keeps its cache between calls" if prices.cache else "reads everything again at each call"
    lines = [f"The teacher {cache}; a hand-off takes {prices.network_delay:g} s."]
    for who in ("student", "teacher"):
        values = asdict(getattr(prices, who)).items()
        words = (f"{name.replace('_', ' ')} {'not set' if value is None else f'{value:g}'}" for name, value in values)
        lines.append(f"The {who}: {', '.join(words)}.")
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)
