"""What MkDocs does not do by itself: lessons and root files as pages, API pages, formulas, and links between them.

The pages in ``docs/`` link as they do in the repository and in the wheel: ``../notebooks/NAME.ipynb``. Here a lesson is
a page, so such links are rewritten. A lesson is shown as ``make notebooks`` executed it, or without outputs.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from html import escape, unescape
from pathlib import Path
from textwrap import indent

import pandas as pd
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from plotly.offline import get_plotlyjs

from relaylab.views.method_map import map_figure
from relaylab.views.theme import show_figure

ROOT = Path(__file__).parents[1]
EXECUTED = ROOT / "runs" / "notebooks"
# Of `make page`: it becomes the first screen where it was built.
RELAY = Path(os.environ.get("RELAYLAB_PAGE", ROOT / "runs" / "page"))
ROOT_PAGES = ("CHANGELOG", "CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT")
PARTS = {  # of the package, as in docs/design.md; the first page has the names of `import relaylab as rl`
    "relay": "Who writes the next token: the loop, sequences, teachers and call rules.",
    "engine": "Batched decoding of one model, with its caches.",
    "tasks": "Questions, reference answers, and grades.",
    "training": "The two stages of training: the warm-up, and GRPO with its rewards.",
    "evaluation": "Every system on the same problems, and what calls change.",
    "server": "A relay as a service with the interface of OpenAI's.",
    "sweep": "A notebook at many parameters, on threads or on Ray.",
    "views": "Traces and tables as HTML, text and figures.",
    "zoo": "The embedded models, and how they are made.",
    "ground": "What the others stand on: the record of a relay, files that survive a crash, the grammar of a call.",
}
GROUND = ("trace", "files", "settings", "stopping", "call_tag", "cost", "cost_by_teacher", "memory")
FRAME = """<iframe id="relay-in-the-page" src="relay/index.html" title="A relay that runs in this page" loading="lazy"
style="width:100%;height:46rem;border:0"></iframe>
<p><a href="relay/index.html">The relay on a page of its own.</a> Both models run in your browser.</p>"""
_outputs: dict[str, list[str]] = {}  # of each lesson: its outputs as HTML, in the order of their placeholders


def on_config(config):
    """Fill the two folders of the navigation, and say where the site will be, once the project has an address."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    if ".invalid/" not in urls["Repository"]:
        config.site_url, config.repo_url = urls["Documentation"], urls["Repository"]
    names = sorted(
        (path.stem for path in (ROOT / "notebooks").glob("*.ipynb")), key=lambda name: (name != "START", name)
    )
    lessons = [*(f"lessons/{name}.md" for name in names), "lessons/capstone/README.md"]
    for section in config.nav:
        if "Lessons" in section:
            section["Lessons"] = lessons
        for place in section.get("Reference", []):
            if "API" in place:
                place["API"] = ["api/index.md", *(f"api/{part}.md" for part in PARTS)]
    return config


def on_files(files: Files, config) -> Files:
    """Add the pages that are not in docs/, and what pages link to."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for name in ROOT_PAGES:
        add(f"{name.lower()}.md", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
    for table in (ROOT / "notebooks" / "measured").glob("*.csv"):
        add(f"measured/{table.name}", table.read_bytes())
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        executed = EXECUTED / source.stem / source.name
        add(f"lessons/{source.stem}.md", _lesson(executed if executed.exists() else source))
        add(f"lessons/{source.name}", source.read_bytes())
    capstone = ROOT / "notebooks" / "capstone"  # lesson 17 links to its page
    for path in sorted(p for p in capstone.glob("*.*") if p.is_file()):
        add(f"lessons/capstone/{path.name}", path.read_bytes())
    add("assets/plotly.js", get_plotlyjs())
    for name, text in _api_pages():
        add(f"api/{name}.md", text)
    for path in RELAY.rglob("*") if (RELAY / "page.json").exists() else ():
        if path.is_file():
            add(f"relay/{path.relative_to(RELAY).as_posix()}", path.read_bytes())
    return files


def _lesson(path: Path) -> str:
    """A notebook as Markdown with placeholders for its outputs."""
    parts, outputs = [], []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        shown = f"```python\n{source}\n```"
        if "hide-input" in cell.get("metadata", {}).get("tags", ()):
            shown = '??? note "Set-up"\n\n' + indent(shown, "    ")
        parts.append(shown)
        for output in cell["outputs"]:
            data = output.get("data", {})
            html, text = ("".join(data.get(kind, "")) for kind in ("text/html", "text/plain"))
            if "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
                continue
            text = "".join(output.get("text", "")) or text or "\n".join(output.get("traceback", []))
            parts.append(f"RELAYLAB-OUTPUT-{len(outputs)}-")
            shown = html or f"<pre>{escape(re.sub(chr(27) + r'[^m]*m', '', text))}</pre>"
            outputs.append(f'<div class="lesson-output" tabindex="0">{shown}</div>')
    if any('class="rl-fig ' in output for output in outputs):  # 5 MB; all lessons share one file
        outputs[0] = '<script src="../../assets/plotly.js"></script>' + outputs[0]
    _outputs[f"lessons/{path.stem}.md"] = outputs
    where = f"[Download this lesson]({path.name}) for JupyterLab, or run `relaylab lab`: it opens all of them."
    heading, _, rest = "\n\n".join(parts).partition("\n")
    return f"{heading}\n\n{where}\n\n{rest}"


def _api_pages():
    """One page per part of the package."""
    exported = re.findall(
        r"^from \.(\S+) import (\w+)", (ROOT / "relaylab/__init__.pyi").read_text(encoding="utf-8"), re.M
    )
    names = "\n".join(
        f"- [`rl.{name}`][relaylab.{module}{'' if name.isupper() else f'.{name}'}]"
        for module, name in sorted(exported, key=lambda e: e[1].lower())
    )
    parts = "\n".join(f"- [{part}]({part}.md): {words}" for part, words in PARTS.items())
    yield (
        "index",
        "# API\n\nThe reference of the package, from its docstrings. These are the names of `import relaylab as rl`:"
        f"\n\n{names}\n\nEvery other public name is on the page of its part:\n\n{parts}\n",
    )
    for part, words in PARTS.items():
        files = sorted((ROOT / "relaylab" / part).glob("*.py"))
        members = [f"{part}.{file.stem}" for file in files if file.stem != "__init__"] or GROUND
        blocks = "\n\n".join(f"::: relaylab.{module}" for module in members)
        yield part, f"# API: {part}\n\n{words} [All parts](index.md).\n\n{blocks}\n"


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links of the repository become links of the site."""
    here = page.file.src_uri
    if here.startswith("lessons/"):
        markdown = re.sub(r"\]\((START|\d\d_\w+)\.ipynb", r"](\1.md", markdown)
        return markdown.replace("](../docs/", "](../")
    markdown = markdown.replace("](../notebooks/measured/", "](measured/")
    markdown = re.sub(r"\]\((?:\.\./)?notebooks/(START|\d\d_\w+)\.ipynb", r"](lessons/\1.md", markdown)
    for name in ROOT_PAGES:
        markdown = re.sub(rf"\]\((\.\./)?{name}\.md", f"]({name.lower()}.md", markdown)
    return markdown.replace("](docs/", "](")


def on_page_content(html: str, page, config, files) -> str:
    """Outputs take their places, and formulas become MathML, which browsers show without a library."""
    for number, output in enumerate(_outputs.get(page.file.src_uri, [])):
        html = html.replace(f"<p>RELAYLAB-OUTPUT-{number}-</p>", output)
    if files and files.get_file_from_path("relay/index.html"):
        html = re.sub(r"<!-- relay -->.*<!-- /relay -->", FRAME, html, flags=re.S)
    if page.file.src_uri == "results.md":
        html = html.replace("<!-- map -->", _map())
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _formula, html, flags=re.S)


def _map() -> str:
    """The map of the worlds as the figure that ``relaylab map`` makes, with the real pair on it."""
    measured = ROOT / "notebooks" / "measured"
    pair = json.loads((measured / "real_pair.json").read_text(encoding="utf-8"))
    shown = show_figure(map_figure(pd.read_csv(measured / "map.csv"), pair))._repr_mimebundle_()
    return f'<script src="../assets/plotly.js"></script><div class="lesson-output">{shown["text/html"]}</div>'


def _formula(match: re.Match) -> str:
    """A formula as MathML; one on a line of its own stays in its ``div``, which scrolls."""
    if match[1] == "span":
        return convert(unescape(match[2]))
    return f'<div class="formula" tabindex="0">{convert(unescape(match[2]), display="block")}</div>'
