"""Executed notebooks as pages and PDFs that need no network: formulas as MathML, figures with pictures.

A page shows its formulas, pictures, words and numbers without a script, too. Pictures and PDFs need a Chromium.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import tempfile
import warnings
from html import escape
from pathlib import Path
from typing import Any, Literal

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from relaylab.doctor import find_browser
from relaylab.files import write_whole
from relaylab.views.theme import plotly_script

NO_BROWSER = "needs a Chromium or Chrome (Debian: apt-get install chromium; or set BROWSER_PATH)"
_FIGURE = re.compile(
    r'(<figure class="rl-fig [^>]*>)(?:<img class="rl-picture"[^>]*>)?'  # a picture from an earlier export goes
    r'(.*?aria-label="(.*?)".*?<script type="application/json">(.*?)</script>)',
    re.S,
)
_STYLE = """<style>
.formula,.jp-InputArea-editor .highlight pre{overflow-x:auto}
.folded>summary{cursor:pointer;font-family:var(--jp-content-font-family);color:var(--jp-content-font-color2)}
@page{size:A4;margin:14mm}
@media print{
 .highlight pre,.jp-OutputArea-output pre{white-space:pre-wrap!important;overflow-wrap:anywhere}
 .jp-Notebook,.jp-Cell,.jp-OutputArea-output{overflow:visible!important}
 .jp-InputPrompt,.jp-OutputPrompt,.anchor-link{display:none!important}
 table{font-size:80%}
}
</style>"""

_TEMPLATE = """{% extends 'index.html.j2' %}
{% block input %}
{% if 'hide-input' in cell.metadata.get('tags', []) %}
<details class="folded"><summary>set-up</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}
{% endblock input %}"""


class _Formulas(IPythonRenderer):
    """Markdown with its formulas as MathML, which browsers show without a library."""

    def block_math(self, body: str) -> str:
        return f'<div class="formula" tabindex="0">{_mathml(body, display="block")}</div>'

    def inline_math(self, body: str) -> str:
        return _mathml(body)


def _mathml(formula: str, display: Literal["inline", "block"] = "inline") -> str:
    """A formula as MathML; its source where it is none."""
    try:
        return convert(formula, display=display)
    except Exception:  # of many kinds, for what an author or a reader wrote
        return f"<code>{escape(formula)}</code>"


class LessonPage(HTMLExporter):
    """A notebook as one page that asks no server. The record below each widget stands in for it."""

    def __init__(self, **options: Any):
        # What nbconvert fetches from elsewhere; an empty script stands in for each.
        nothing = "data:text/javascript,"
        urls = ("require_js_url", "widget_renderer_url", "mermaid_js_url", "mermaid_layout_elk_js_url")
        ours = {"mathjax_url": "", "embed_images": True, "raw_template": _TEMPLATE}
        super().__init__(**(ours | dict.fromkeys(urls, nothing) | options))

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """The filter of Markdown cells and outputs."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Formulas(escape=False, attachments=attachments, exclude_anchor_links=True)
        return str(MarkdownWithMath(renderer=renderer).render(source))

    def from_notebook_node(self, nb: Any, resources: Any = None, **options: Any) -> tuple[str, Any]:
        """The page and nbconvert's resources."""
        page, resources = super().from_notebook_node(nb, resources, **options)
        head = _STYLE + (plotly_script() if 'class="rl-fig ' in page else "")
        return page.replace("</head>", f"{head}</head>", 1), resources


def write_page(notebook: str | Path, page: str | Path, *, pdf: bool = False) -> list[Path]:
    """Write an executed notebook as an HTML page, and for ``pdf`` as a PDF beside it; the files.

    The figures get pictures, in the notebook, too.

    Raises:
        RuntimeError: There is no Chromium for the PDF, or it failed.
    """
    notebook, page = Path(notebook), Path(page)
    book: Any = nbformat.read(notebook, 4)
    if _add_pictures(book):
        nbformat.write(book, notebook)
    write_whole(page, LessonPage().from_notebook_node(book, {"metadata": {"name": notebook.stem}})[0])
    return [page, *([_print(page)] if pdf else [])]


def _add_pictures(book: Any) -> int:
    """Put a picture into each figure of a notebook, if kaleido finds a browser; how many figures there are."""
    outputs = [
        output["data"]
        for cell in book.cells
        for output in cell.get("outputs", ())
        if 'class="rl-fig ' in output.get("data", {}).get("text/html", "")
    ]
    found = [match[4] for data in outputs for match in _FIGURE.finditer(data["text/html"])]
    if not found:
        return 0
    try:
        pictures = iter(asyncio.run(_draw(found)))
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"figures stay without pictures: kaleido {NO_BROWSER}. The reason: {reason}", stacklevel=3)
        return 0

    def with_picture(match: re.Match) -> str:
        source = base64.b64encode(next(pictures)).decode()
        return f'{match[1]}<img class="rl-picture" alt="{match[3]}" src="data:image/svg+xml;base64,{source}">{match[2]}'

    for data in outputs:
        data["text/html"] = _FIGURE.sub(with_picture, data["text/html"])
    return len(found)


def write_svg(fig: Any, path: Path) -> None:
    """A Plotly figure as SVG on white, at the size of its layout; needs kaleido and a Chromium."""
    path.write_bytes(asyncio.run(_draw([fig.to_json()]))[0])


async def _draw(figures: list[str]) -> list[bytes]:
    """Figures, as JSON, as SVG on white."""
    import kaleido
    import plotly.graph_objects as go
    import plotly.io as pio

    from relaylab.views.theme import register_templates

    register_templates()
    pictures = []
    async with kaleido.Kaleido(n=1, mathjax=False) as drawing:  # with mathjax its page would ask the network
        for text in figures:
            fig = go.Figure(pio.from_json(text)).update_layout(template="relaylab_light")
            layout: Any = fig.layout
            size: Any = {"format": "svg", "width": layout.width or 900, "height": layout.height or 450}
            pictures.append(await drawing.calc_fig(fig, opts=size))
    return pictures


def browser() -> str:
    """The path of a Chromium. RuntimeError if there is none."""
    found = find_browser()
    if not found:
        raise RuntimeError(f"--pdf {NO_BROWSER}; or print the HTML page from your browser")
    return found


def _print(page: Path) -> Path:
    """The page as a PDF beside it."""
    pdf = page.with_suffix(".pdf")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={profile}"]
        if getattr(os, "geteuid", lambda: 1)() == 0:
            options.append("--no-sandbox")  # as root there is no other way
        command = [browser(), *options, f"--print-to-pdf={pdf.resolve()}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode or not pdf.exists():
        raise RuntimeError(f"{command[0]} printed no PDF: {done.stderr.strip()[-500:]}")
    return pdf
