"""Colours, marks and the plotly template: the one place that says what student, teacher and command look like.

Hues are Okabe and Ito's, which stay apart for colour-blind readers; every role also has a shape, so that colour never
speaks alone. ``mark`` colours are for lines and bars, with a contrast of 3:1 on white and on near black at once. Text
needs 4.5:1, which no single colour has on both, so pages get one palette for light and one for dark (``page_css``).

Importing this costs nothing: plotly is imported by the functions that need it.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relaylab.trace import COMMAND, STUDENT, TEACHER

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# In the order of use: those with 3:1 on white and on near black first. Okabe & Ito's yellow is too faint for lines.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


@dataclass(frozen=True, slots=True)
class Role:
    """How a source of tokens looks: ``mark`` and ``symbol`` in figures, ``open`` and ``close`` around it in text."""

    name: str
    mark: str
    symbol: str
    open: str = ""
    close: str = ""


ROLES = {
    STUDENT: Role("student", OKABE_ITO[0], "circle"),
    TEACHER: Role("teacher", OKABE_ITO[1], "square", "«", "»"),
    COMMAND: Role("command", OKABE_ITO[3], "triangle-down"),
}

# Text colours named as the role they write; ``X-fill`` is what lies behind X, ``paper`` behind all the others.
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
    """CSS that gives ``selector`` the palette as ``--rl-*`` variables, light or dark as the page around it is.

    JupyterLab, VS Code and Colab say what they are by an attribute or class; elsewhere the reader's system decides.

    >>> page_css(".x").count("--rl-paper:#ffffff;")  # as the default and where the page says that it is light
    2
    """
    light, dark = (
        f"color-scheme:{name};" + "".join(f"--rl-{key}:{value};" for key, value in palette.items())
        for name, palette in (("light", LIGHT), ("dark", DARK))
    )
    hosts_light = "body[data-jp-theme-light=true]", "body.vscode-light", "html[theme=light]"
    hosts_dark = "body[data-jp-theme-light=false]", "body.vscode-dark", "html[theme=dark]"
    return (
        f"{selector}{{--rl-sans:{SANS};--rl-mono:{MONO};{light}}}"
        f"@media (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"
        f"{','.join(f'{host} {selector}' for host in hosts_light)}{{{light}}}"
        f"{','.join(f'{host} {selector}' for host in hosts_dark)}{{{dark}}}"
    )


def register() -> None:
    """Register the plotly templates ``relaylab`` (any page), ``relaylab_light`` and ``relaylab_dark`` (known page).

    The first writes in a grey of middle contrast, 4.5:1 on white and 4:1 on near black; ``described`` does better.

    >>> register(); import plotly.io; plotly.io.templates["relaylab"].layout.paper_bgcolor
    'rgba(0,0,0,0)'
    """
    import plotly.graph_objects as go
    import plotly.io as pio

    if "relaylab" in pio.templates:
        return
    clear = "rgba(0,0,0,0)"
    for name, ink, paper in (
        ("relaylab", "#767676", clear),
        ("relaylab_light", LIGHT["ink"], LIGHT["paper"]),
        ("relaylab_dark", DARK["ink"], DARK["paper"]),
    ):
        axis = {"gridcolor": "rgba(128,128,128,.22)", "linecolor": "rgba(128,128,128,.6)", "zeroline": False}
        axis |= {"ticks": "outside", "tickcolor": "rgba(128,128,128,.6)", "automargin": True}
        axis |= {"title": {"standoff": 10, "font_size": 14}}
        pio.templates[name] = go.layout.Template(
            layout={
                "font": {"family": SANS, "size": 13, "color": ink},
                "title": {"font_size": 17, "x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container"}
                | {"yanchor": "top", "pad": {"t": 16}},
                "paper_bgcolor": paper,
                "plot_bgcolor": clear,
                "colorway": OKABE_ITO,
                "xaxis": axis,
                "yaxis": axis,
                "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "bgcolor": clear},
                "modebar": {"bgcolor": clear, "color": "#8a8a8a", "activecolor": OKABE_ITO[0]},
                "hoverlabel": {"bgcolor": LIGHT["ink"], "bordercolor": "#767676", "align": "left"}
                | {"font": {"family": SANS, "size": 13, "color": "#ffffff"}},
                "margin": {"l": 64, "r": 24, "t": 84, "b": 56},
            }
        )


@dataclass(frozen=True, slots=True)
class Html:
    """HTML that a notebook displays, with the plain text for where HTML cannot be shown."""

    html: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


def plotly_library() -> Html:
    """plotly.js itself, 5 MB, to be the last line of a notebook's first cell: figures below then need no network.

    >>> plotly_library()
    plotly.js is loaded
    """
    from plotly.offline import get_plotlyjs

    register()  # so that the template is known to figures of the reader's own
    return Html(f"<script>{get_plotlyjs()}</script>", "plotly.js is loaded")


def described(fig: Figure, *, library: bool = False) -> Html:
    """A figure with its text alternative (``fig.layout.meta["alt"]``), for those who hear it and where scripts are off.

    Its text takes the colours of the page, light or dark. The page must hold plotly.js (``plotly_library``), or
    ``library=True`` puts it into this figure. Raises ValueError where the figure has no text alternative.

    >>> import plotly.graph_objects as go
    >>> described(go.Figure(layout_meta={"alt": "Accuracy rises from 20 % to 60 %."}))
    Accuracy rises from 20 % to 60 %.
    """
    import plotly.io as pio

    alt = (fig.layout.meta or {}).get("alt")
    if not alt:
        raise ValueError('the figure has no text alternative: set fig.layout.meta = {"alt": "what it shows"}')
    plot = pio.to_html(fig, full_html=False, include_plotlyjs=library, config={"displaylogo": False})
    text = html.escape(alt)
    style = page_css(".rl-fig") + (
        ".rl-fig{margin:0;color:var(--rl-ink)}.rl-fig .main-svg text{fill:var(--rl-ink)!important}"
        ".rl-fig .main-svg .hoverlayer text{fill:#fff!important}"
        ".rl-fig details{font:13px/1.5 var(--rl-sans)}.rl-fig summary{cursor:pointer;color:var(--rl-muted)}"
    )
    return Html(
        f'<figure class="rl-fig"><style>{style}</style><div role="img" aria-label="{text}">{plot}</div>'
        f"<details><summary>The figure in words</summary><p>{text}</p></details></figure>",
        alt,
    )
