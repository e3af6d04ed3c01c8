"""Colours, symbols, the plotly templates, and the text alternative that every figure must have.

The hues are those of Okabe and Ito, which colour-blind readers can tell apart. Every role also has a shape, so no
information is carried by colour alone. ``Role.mark`` has a contrast of 3:1 on white and on near black, enough for lines
and bars. Text needs 4.5:1, so pages have one palette for light and one for dark (``page_css``).

Importing this module is cheap: plotly is imported by the functions that need it.
"""

from __future__ import annotations

import hashlib
import html
import re
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relaylab.call_tag import visible
from relaylab.files import check_own_file, write_whole
from relaylab.trace import COMMAND, STUDENT, TEACHER

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# In order of use. Okabe and Ito's yellow is left out: it is too faint for lines.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
GREY = OKABE_ITO[6]
# Scales of heat maps, from 0 to the highest value, or from below 0 to above: the page's ink can be read on all of both.
HEAT = [[0, "rgba(0,114,178,.06)"], [1, "rgba(0,114,178,.7)"]]
HEAT_SIGNED = [[0, "rgba(213,94,0,.7)"], [0.5, "rgba(128,128,128,0)"], [1, "rgba(0,114,178,.7)"]]
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'  # begins so
)
NO_MATH = "tex2jax_ignore mathjax_ignore"  # classes that stop MathJax 2 and 3: a dollar in a text stays a dollar


@dataclass(frozen=True, slots=True)
class Role:
    """How one source of tokens looks."""

    name: str  # the word for it
    mark: str  # its colour in figures
    symbol: str  # its marker in figures
    open: str = ""  # text before its tokens on a terminal
    close: str = ""  # and after them


ROLES = {
    STUDENT: Role("student", OKABE_ITO[0], "circle"),
    TEACHER: Role("teacher", OKABE_ITO[1], "square", "«", "»"),
    COMMAND: Role("command", OKABE_ITO[3], "triangle-down"),
}

# A text colour has the name of its role. ``X-fill`` is the background of X; ``paper`` is the background of all others.
LIGHT = {
    "paper": "#ffffff", "ink": "#1c2128", "muted": "#59636e", "line": "#d5dbe1", "panel": "#f5f7f9",
    "student": "#0b4770", "teacher": "#7f3300", "teacher-fill": "#ffe3cc", "teacher-edge": "#d55e00",
    "command": "#8a2c62", "command-fill": "#fcf0f6", "command-edge": "#cc79a7", "good": "#00694c", "bad": "#b3261e",
}  # fmt: skip
DARK = {
    "paper": "#14171b", "ink": "#e8eaed", "muted": "#a0a9b3", "line": "#363d45", "panel": "#1c2126",
    "student": "#9ccdf0", "teacher": "#ffc493", "teacher-fill": "#4d2a0e", "teacher-edge": "#ef8236",
    "command": "#f2a8d0", "command-fill": "#34202c", "command-edge": "#b0608c", "good": "#4fd1a5", "bad": "#ff9a91",
}  # fmt: skip


def page_css(selector: str) -> str:
    """CSS variables ``--rl-*`` for ``selector``, light or dark as the page around it.

    JupyterLab, VS Code and Colab state their theme in an attribute or a class. Elsewhere the system setting decides.

    >>> page_css(".x").count("--rl-paper:#ffffff;")  # the default, and the pages that state that they are light
    2
    """
    light, dark = (
        f"color-scheme:{name};" + "".join(f"--rl-{key}:{value};" for key, value in palette.items())
        for name, palette in (("light", LIGHT), ("dark", DARK))
    )
    light_hosts = "body[data-jp-theme-light=true]", "body.vscode-light", "html[theme=light]"
    dark_hosts = "body[data-jp-theme-light=false]", "body.vscode-dark", "html[theme=dark]"
    return (
        f"{selector}{{--rl-sans:{SANS};--rl-mono:{MONO};{light}}}"
        f"@media (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"
        f"{','.join(f'{host} {selector}' for host in light_hosts)}{{{light}}}"
        f"{','.join(f'{host} {selector}' for host in dark_hosts)}{{{dark}}}"
    )


@cache
def source(name: str) -> str:
    """The text of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def style(selector: str, *names: str) -> str:
    """``page_css`` of a selector, and the rules of some files in this folder, where ``&`` stands for it."""
    return page_css(selector) + "".join(map(source, names)).replace("\n", "").replace("&", selector)


def register_templates() -> None:
    """Register the plotly templates ``relaylab`` (any page), ``relaylab_light`` and ``relaylab_dark``.

    The first has a transparent background and grey text, readable on both; ``show_figure`` then sets the page's colour.

    >>> register_templates(); import plotly.io; plotly.io.templates["relaylab"].layout.paper_bgcolor
    'rgba(0,0,0,0)'
    """
    import plotly.graph_objects as go
    import plotly.io as pio

    if "relaylab" in pio.templates:
        return
    clear = "rgba(0,0,0,0)"
    line = "rgba(128,128,128,.6)"
    axis = {"gridcolor": "rgba(128,128,128,.22)", "linecolor": line, "tickcolor": line, "ticks": "outside"}
    axis |= {"zeroline": False, "automargin": True, "title": {"standoff": 10, "font_size": 14}}
    font = {"family": SANS, "size": 13}
    title = {"font_size": 17, "x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container"}
    for name, ink, paper in (
        ("relaylab", "#767676", clear),
        ("relaylab_light", LIGHT["ink"], LIGHT["paper"]),
        ("relaylab_dark", DARK["ink"], DARK["paper"]),
    ):
        layout = {
            "font": font | {"color": ink},
            "title": title | {"yanchor": "top", "pad": {"t": 16}},
            "paper_bgcolor": paper,
            "plot_bgcolor": clear,
            "colorway": OKABE_ITO,
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "bgcolor": clear},
            "modebar": {"bgcolor": clear, "color": "#8a8a8a", "activecolor": OKABE_ITO[0]},
            "hoverlabel": {"bgcolor": LIGHT["ink"], "bordercolor": "#767676", "align": "left"}
            | {"font": font | {"color": "#ffffff"}},
            "margin": {"l": 64, "r": 24, "t": 84, "b": 56},
        }
        pio.templates[name] = go.layout.Template(layout=layout, data={"heatmap": [{"textfont": {"color": ink}}]})


@dataclass(frozen=True, slots=True)
class Html:
    """HTML that a notebook displays, and plain text for readers without HTML."""

    html: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text

    def save(self, path: str | Path) -> None:
        """Write it as a page of its own: one HTML file that needs no network. It replaces pages of ours only."""
        check_own_file(path, PAGE.encode())
        write_whole(path, html_page(self.text.partition("\n")[0][:80], self.html))


def html_page(title: str, body: str, *sheets: str) -> str:
    """A whole page in the colours of the reader's system, with plotly.js if it has figures of ``show_figure``.

    Args:
        title: Its title, as text.
        body: Its HTML, escaped by the caller.
        sheets: CSS files of this folder.
    """
    css = f"<style>{style('body', *sheets)}</style>" if sheets else ""
    script = plotly_script() if 'class="rl-fig ' in body else ""
    return (
        f'{PAGE}<title>{html.escape(visible(title))}</title>{css}{script}<body class="{NO_MATH}">{body}</body></html>\n'
    )


def plotly_script() -> str:
    """plotly.js (5 MB) as an element for a page; figures that are in the page already are drawn when it has loaded."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()};dispatchEvent(new Event('rl-plotly'))</script>"


def load_plotly() -> None:
    """Load plotly.js into a notebook's page, so that figures need no network. Call it in the first cell.

    When the next cell begins, the output is replaced. So a saved notebook does not hold the library.
    """
    from IPython import get_ipython
    from IPython.display import display

    register_templates()  # so that the reader's own figures can use them, too
    shell: Any = get_ipython()
    if shell is None:
        return
    output: Any = display(Html(plotly_script(), "plotly.js"), display_id=True)
    note = "plotly.js is loaded. Opened again, this notebook shows figures as words and numbers until this cell runs."

    def forget(_: Any = None) -> None:
        shell.events.unregister("pre_run_cell", forget)
        output.update(Html(f"<small>{note}</small>", note))

    shell.events.register("pre_run_cell", forget)


def with_alt_text(fig: Figure, text: str, title: str, **layout: Any) -> Figure:
    """Give a figure the shared template, a title, and a text alternative (``fig.layout.meta["alt"]``).

    Args:
        fig: A plotly figure; it is changed.
        text: What the figure shows, with its numbers, for readers who hear it.
        title: The title above it.
        layout: More layout settings of plotly.

    Returns:
        The same figure.
    """
    register_templates()
    fig.update_layout(template="relaylab", meta={"alt": text}, title_text=title, legend_title_text="")
    return fig.update_layout(**layout)


def html_table(frame: Any) -> str:
    """A frame as an HTML table; texts are escaped and safe to lay out."""
    text = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    return text.to_html(index=False, border=0, na_rep="", float_format=number_text, escape=True)


def number_text(value: float) -> str:
    """A number of a table: four significant digits; from 1,000 to a million one decimal.

    >>> number_text(0.12345), number_text(1234.56), number_text(2000.0), number_text(1.7e9)
    ('0.1235', '1234.6', '2000', '1.7e+09')
    """
    return f"{value:.1f}".removesuffix(".0") if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


SHOWN_POINTS = 20  # of a trace, in a figure's table


def show_figure(fig: Figure) -> Html:
    """A figure for a page: drawn by a script, and in words and numbers for readers without one.

    The text in it takes the page's colour. The page must hold plotly.js, as after ``load_plotly`` or in ``html_page``.

    Args:
        fig: A plotly figure from ``with_alt_text``.

    Raises:
        ValueError: The figure has no text alternative.

    >>> import plotly.graph_objects as go
    >>> show_figure(with_alt_text(go.Figure(), "Accuracy rises from 20 % to 60 %.", "Accuracy"))
    Accuracy rises from 20 % to 60 %.
    """
    layout: Any = fig.layout
    alt = (layout.meta or {}).get("alt")
    if not alt:
        raise ValueError("the figure has no text alternative: call with_alt_text(fig, text, title)")
    payload = str(fig.to_json()).replace("<", "\\u003c")
    key, text = hashlib.sha256(payload.encode()).hexdigest()[:16], html.escape(alt)
    draw = source("figure.js").replace("KEY", key)
    return Html(
        f'<figure class="rl-fig {NO_MATH}" data-rl-figure="{key}">'
        f"<style>{style('.rl-fig', 'figure.css')}</style>"
        f'<div class="rl-live" role="img" aria-label="{text}"></div>'
        f"<details open><summary>The figure in words</summary><p>{text}</p>{_numbers(fig)}</details>"
        f'<script type="application/json">{payload}</script><script>{draw}</script></figure>',
        alt,
    )


def _numbers(fig: Any) -> str:
    """The data of a figure as a table with a row per trace; empty if an axis is a drawing's own, as of ``ticktext``."""
    if any(axis.ticktext for axis in (*fig.select_xaxes(), *fig.select_yaxes())):
        return ""

    def cell(value: Any) -> str:
        text = number_text(float(value)) if isinstance(value, Real) and not isinstance(value, Integral) else str(value)
        return html.escape(visible(html.unescape(re.sub("<[^>]*>", " ", text))))

    rows = ""
    for trace in fig.data:
        x, y, z = ([] if v is None else list(v) for v in (trace.x, trace.y, getattr(trace, "z", None)))
        pairs = zip(y, x) if getattr(trace, "orientation", None) == "h" else zip(x, y)
        shown = [f"{cell(a)}: {cell(b)}" for a, b in pairs]
        if z:  # a heatmap: of each row its values
            shown = [f"{cell(name)}: {', '.join(map(cell, row))}" for name, row in zip(y or range(len(z)), z)]
        if shown:
            more = f"; {len(shown) - SHOWN_POINTS:,} more" if len(shown) > SHOWN_POINTS else ""
            rows += f"<tr><th>{cell(trace.name or '')}</th><td>{'; '.join(shown[:SHOWN_POINTS])}{more}</td></tr>"
    return f"<table>{rows}</table>" if rows else ""
