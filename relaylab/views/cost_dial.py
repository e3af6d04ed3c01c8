"""The cost dial: prices, sizes, delay and cache as sliders; the cost against the teacher's share of the tokens moves.

The equations are those of ``evaluation/cost.py`` (docs/cost.md) for regular responses. The page computes them by a port
(``cost_dial.js``), since it works without a kernel; a test holds the port against the original. Figures of real traces
are ``cost_figures.py``'s.
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict, replace

from relaylab.evaluation.cost import MEASURES, Prices, cost_sweep, roofline
from relaylab.views.cost_figures import NAMES
from relaylab.views.frontend import fragment
from relaylab.views.theme import Html

CALL_TOKENS = (1, 10, 100)  # of the three lines
LONGEST = 20_000  # tokens of a response: every call of it is stepped through at each move of a slider


def example_terms() -> Prices:
    """The terms of the worked example in docs/cost.md: 1.7B and 8B on an H100's data sheet; assumed prices and delay.

    >>> example_terms().teacher.output_price
    4
    """
    card = dict(flops=989e12, bandwidth=3.35e12)
    student = replace(roofline(1.7e9, **card), input_price=0, output_price=0)
    teacher = replace(roofline(8e9, **card), input_price=1, cached_price=0.25, output_price=4)
    return Prices(student=student, teacher=teacher, network_delay=0.05)


def cost_dial(
    terms: Prices | None = None,
    *,
    prompt: int = 150,
    tokens: int = 1000,
    command_tokens: int = 8,
    calls: int = 10,
    call_tokens: int = 1,
    measure: str = "flops",
) -> Html:
    """The dial, beginning with ``terms`` (without them those of docs/cost.md), as HTML that computes by itself.

    A response has ``tokens`` besides its commands and a prompt of ``prompt``; ``calls`` of ``call_tokens`` are the
    chosen point. Lines are calls of 1, 10 and 100 tokens, ever more of them. A model that is made f times as large
    becomes f times as slow, as on the roofline.

    >>> cost_dial()
    Cost dial: 10 calls of 1 token, 0.926 % of the tokens; FLOPs 115 %, price 59.1 %, time to the answer 34.2 %, ...

    Raises ValueError for an unknown measure, and where the calls do not fit into the response.
    """
    terms = terms or example_terms()
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; there are {', '.join(MEASURES)}")
    if not (1 <= tokens <= LONGEST and 0 <= prompt <= 10 * LONGEST and 0 <= command_tokens <= 100):
        raise ValueError(
            f"a response of {tokens} tokens behind {prompt}, commands of {command_tokens}: the dial takes 1 to "
            f"{LONGEST} behind at most {10 * LONGEST}, and commands of at most 100"
        )
    if calls < 1 or call_tokens < 1 or calls * call_tokens > tokens:
        raise ValueError(f"{calls} calls of {call_tokens} tokens do not fit into {tokens}; both are 1 or more")
    shape = {"prompt": prompt, "tokens": tokens, "command_tokens": command_tokens}
    delays, batches = [terms.network_delay], [terms.teacher.batch]
    row = cost_sweep(
        terms, **shape, calls=[calls], call_tokens=[call_tokens], network_delays=delays, caches=[terms.cache],
        batches=batches,
    ).iloc[0]  # fmt: skip
    costs = ", ".join(f"{name} {_percent(row[key])}" for key, name in NAMES.items())
    text = (
        f"Cost dial: {_plural(calls, 'call')} of {_plural(call_tokens, 'token')}, {_percent(row.teacher_share)} of the "
        f"tokens; {costs}, all of the teacher alone."
    )
    data = {
        "terms": asdict(terms),
        "shape": shape | {"calls": calls, "call_tokens": call_tokens},
        "lines": CALL_TOKENS,
        "measure": measure,
        "measures": NAMES,
        "longest": LONGEST,
    }
    return Html(fragment("cost_dial", data, label=text, words=f"<p>{html.escape(text)}</p>{_settings(terms)}"), text)


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.3g} %"


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _settings(terms: Prices) -> str:
    """What the dial begins with, in words."""
    cache = "keeps its cache between calls" if terms.cache else "reads everything again at each call"
    told = [f"The teacher {cache}; a hand-off takes {terms.network_delay:g} s."]
    for who in ("student", "teacher"):
        set_ = ", ".join(
            f"{name.replace('_', ' ')} {'not set' if value is None else f'{value:g}'}"
            for name, value in asdict(getattr(terms, who)).items()
        )
        told.append(f"The {who}: {set_}.")
    return "".join(f"<p>{html.escape(line)}</p>" for line in told)
