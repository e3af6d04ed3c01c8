"""A view with a front end of its own, as HTML that stands alone: it needs no kernel, no network and no build step.

``fragment`` puts four things into one element: the data as JSON, the view's JavaScript (``NAME.js`` beside this file,
behind what all views share, ``frontend.js``), the style (``frontend.css``), and the view in words. A live notebook, an
executed one and its export as HTML run the same code. Where scripts are taken out (a notebook that is not trusted, a
code host) the words are what is left, opened; the script closes them.

Data never becomes markup: it is JSON in which no ``<`` is left, and the scripts write text nodes only.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from relaylab.views.theme import page_css

ROOT = ".rl-view.rl-view.rl-view"  # three times: the rules must outweigh the notebook's own for tables and buttons


@cache
def source(name: str) -> str:
    """A file of the front end, as text."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def style() -> str:
    """The style of all views; ``&`` in the file is the root."""
    return page_css(ROOT) + source("frontend.css").replace("\n", "").replace("&", ROOT)


def scripts(name: str, uses: Sequence[str] = ()) -> str:
    """The JavaScript of a view behind what it needs; each view that it uses is in a function of its own."""
    inner = (f"const {other} = (() => {{\n{source(other + '.js')}\nreturn render;\n}})();" for other in uses)
    return "\n".join([source("frontend.js"), *inner, source(name + ".js")])


def fragment(name: str, data: Any, *, label: str, words: str, uses: Sequence[str] = ()) -> str:
    """HTML of the view whose script is ``NAME.js``, for ``data`` (of what JSON knows; no NaN).

    label: the view's name for a screen reader, as text. words: the view in words, as HTML, escaped by the caller.
    The script defines ``render(stage, data)``. uses: other views that it draws within itself, each by a function of
    that view's name, which is the other's ``render``. Raises ValueError for data that JSON has no word for.

    >>> page = fragment("player", {"traces": [], "odd": "</script>"}, label="A relay", words="<p>none</p>")
    >>> page.count("</script>"), '"odd":"\\\\u003c/script>"' in page
    (2, True)
    """
    payload = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = hashlib.sha256(f"{name} {payload}".encode()).hexdigest()[:16]
    script = f'(()=>{{"use strict";\n{scripts(name, uses)}\nstart("{key}",render);}})();'
    return (
        f'<section class="rl-view" data-rl="{key}" aria-label="{html.escape(label)}">'
        f'<style>{style()}</style><script type="application/json">{payload}</script><div class="rl-stage"></div>'
        f'<details class="rl-words" open><summary>In words</summary>{words}</details>'
        f"<script>{script}</script></section>"
    )
