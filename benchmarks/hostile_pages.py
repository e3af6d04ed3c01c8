"""Put 31 hostile texts into every field of 21 kinds of pages: none may become markup.

    python benchmarks/hostile_pages.py
    python benchmarks/hostile_pages.py --browser      # in Chromium
    python benchmarks/hostile_pages.py --jupyterlab   # a notebook of ten of their kinds, in JupyterLab in Chromium

A parser of HTML5 reads each page. It has to find the same elements and attributes as with harmless texts. In a browser,
every element then gets a click, the pointer, the focus: no text may run, and nothing may be fetched.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from relaylab.evaluation.stats import summary
from relaylab.evaluation.table import rows_of
from relaylab.files import write_json
from relaylab.relay.pair import load_pair
from relaylab.sweep.notebook import DONE, FAILED
from relaylab.sweep.plan import Plan, Point
from relaylab.sweep.results import collect
from relaylab.trace import Call, Trace, TraceWriter
from relaylab.views import curves, evaluation_figures, figures
from relaylab.views.atlas import atlas
from relaylab.views.counterfactual_view import CounterfactualView
from relaylab.views.live_view import Run, side_by_side
from relaylab.views.player import player
from relaylab.views.playground import Playground
from relaylab.views.report import report
from relaylab.views.sweep_report import sweep_page
from relaylab.views.theme import html_page, plotly_script, show_figure
from relaylab.views.trace_view import trace_html
from relaylab.views.widget import static_view

PAYLOADS = (
    "<script>ran(1)</script>",
    "</script><script>ran(1)</script>",
    "<img src=x onerror=ran(1)>",
    "<img src=http://evil.test/a.png>",
    "<svg onload=ran(1)>",
    "<svg><script>ran(1)</script></svg>",
    "\"><img src=x onerror=ran(1)>",
    "'><img src=x onerror=ran(1)>",
    "\" onmouseover=\"ran(1)\" x=\"",
    "' onclick='ran(1)' x='",
    "</style><script>ran(1)</script>",
    "</textarea></title><script>ran(1)</script>",
    "--><script>ran(1)</script><!--",
    "<!--<script>",
    "]]><script>ran(1)</script>",
    "<iframe srcdoc=\"<script>parent.ran(1)</script>\"></iframe>",
    "<a href=\"javascript:ran(1)\">click</a>",
    "javascript:ran(1)",
    "<a href='http://evil.test/b'>link</a>",
    "<meta http-equiv=refresh content='0;url=http://evil.test/c'>",
    "<link rel=stylesheet href=http://evil.test/d.css>",
    "<style>@import 'http://evil.test/e.css'; *{background:url(http://evil.test/f)}</style>",
    "<details open ontoggle=ran(1)>x</details>",
    "<input autofocus onfocus=ran(1)>",
    "<form action=http://evil.test/g><button>go</button></form>",
    "&lt;script&gt;ran(1)&lt;/script&gt;&#60;script&#62;ran(1)&#60;/script&#62;",
    "\\u003cscript\\u003eran(1)\\u003c/script\\u003e\\x3cscript>",
    "${ran(1)}`;ran(1);`{{ran(1)}}{% ran %}",
    "\u2028ran(1)\u2029;ran(1)//\\\";ran(1);//",
    "$\\href{javascript:ran(1)}{x}$ \\(\\style{background:url(http://evil.test/h)}{y}\\) $$z$$",
    "![x](http://evil.test/i.png) [y](javascript:ran(1)) <b>%{x}<extra></extra>\u202e\u0000\x1b]0;t\x07",
)  # fmt: skip


def traces(texts: tuple[str, ...]) -> list[Trace]:
    """A trace per text, with it in every field that holds text."""
    made = []
    for i, text in enumerate(texts):
        half = len(text) // 2
        calls = [
            Call(1, 3, 4, 2, 2, 2, "answered", "length", text, 0.1, None),
            Call(5, 6, 3, 3, 0, 0, "failed", text, text, 0.2, text),
        ]
        problem = {"id": text, "suite": text, "question": text, "answer": text, "level": text}
        problem["steps"] = [{"text": text, "kind": text, "result": text}]
        pieces = [text, "<call>4", "</call>", text[:half], text[half:], "<call>3</call>", text, "x"]
        made.append(
            Trace(
                text, [1, 2], list(range(8)), "scctscss", pieces, calls, "end", logprobs=[-0.5] * 8,
                entropies=[0.5] * 8, teacher_logprobs=[-0.1] * 8, teacher_top=[text] * 8,
                divergences=[2.0] * 8, alternatives=[{text: 0.6, "<call>": 0.1}] * 8, seed=i,
                temperature=1.0, student=text, teacher=text, id=f"{text}{i}", problem=problem, correct=bool(i % 2),
                config={"student": text, "teacher": text, "call_rule": text},
            )
        )  # fmt: skip
    return made


def pages(texts: tuple[str, ...], folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """The name of each kind of page, and what makes it as a document of its own."""
    all_, table = traces(texts), evaluation(texts)

    def plain(*parts: str) -> str:
        return "<!doctype html><meta charset=utf-8><title>t</title>" + "".join(parts)

    def drawn(*made: Any) -> str:
        return html_page(texts[0], "".join(show_figure(fig).html for fig in made), "report.css")

    def live(view: Any) -> str:
        runs = [Run(t.id, t.id, t.prompt, t) for t in all_[:6]]
        view._set_runs(runs)
        view.picked = {"suite": texts[0], "question": texts[0], "answer": texts[1]} if "picked" in view.keys else {}
        view.report(texts[0], failed=True)
        state = {k: getattr(view, k) for k in view.keys if not k.startswith("_") and k not in ("layout", "tabbable")}
        state = json.loads(json.dumps(state, default=str))
        return plain(static_view(view.view, state, label=texts[0], words=view.record().html).html)

    verdicts = pd.DataFrame([{"suite": t, "verdict": t, "with": 1.0, "against": 0.0, "arm": t} for t in texts])
    gains = pd.DataFrame([{"suite": t, "arm": t, "gain": 0.1, "low": 0.0, "high": 0.2} for t in texts])
    moved = [{"teacher": t, "group": t, "accuracy": 0.5, "teacher_share": 0.1, "low": 0.4, "high": 0.6} for t in texts]
    alike = [{"a": a, "b": b, "same_later": 0.5, "same_first": 0.5, "later": 2, "either": 2}
             for a, b in pairwise(texts)]  # fmt: skip
    metrics = {t: pd.DataFrame({"step": [1, 2], "accuracy": [0.1, 0.2]}) for t in texts}

    yield "traces", lambda: plain(*map(trace_html, all_))
    yield "one trace", lambda: plain(trace_html(all_[0]))
    yield "player", lambda: plain(player(all_).html)
    yield "player of one", lambda: plain(player(all_[1]).html)
    yield "atlas by suite", lambda: plain(atlas(all_).html)
    yield "atlas by level", lambda: plain(atlas(all_, by="level").html)
    yield "atlas by student", lambda: plain(atlas(all_, by="student").html)
    yield "atlas by label", lambda: plain(atlas(all_, by=list(texts), name=texts[0]).html)
    yield "record of a live view", lambda: plain(side_by_side([Run(t.id, t.id, t.prompt, t) for t in all_]))
    yield "playground", lambda: live(Playground(students=["student"], teachers=["none"]))
    yield "counterfactuals", lambda: live(CounterfactualView(Trace("q", [1]), load_pair("student", "none")))
    yield "entropy", lambda: drawn(*map(figures.token_entropy, all_))
    yield "call positions", lambda: drawn(figures.call_positions(all_))
    yield "accuracy and share", lambda: drawn(evaluation_figures.accuracy_against_share(table, student=texts[0]))
    yield "suites", lambda: drawn(evaluation_figures.suite_bars(table))
    yield (
        "verdicts",
        lambda: drawn(evaluation_figures.verdict_figure(verdicts), evaluation_figures.effects_figure(gains)),
    )
    yield (
        "transfer",
        lambda: drawn(
            evaluation_figures.transfer_figure(pd.DataFrame(moved), by="group"),
            evaluation_figures.agreement_figure(pd.DataFrame(alike)),
        ),
    )
    yield "learning curves", lambda: drawn(curves.learning_curves(metrics, columns=["accuracy"], title=texts[0]))
    yield "report", lambda: evaluation_report(all_, table, folder).read_text(encoding="utf-8")
    yield "sweep", lambda: Path(sweep(texts, folder)).read_text(encoding="utf-8")
    yield "notebook", lambda: notebook(all_)


def evaluation(texts: tuple[str, ...]) -> pd.DataFrame:
    """A table whose methods, students and suites are the texts."""
    frames = [rows_of(traces(texts), text, text, 0) for text in texts[:8]]
    return pd.concat(frames, ignore_index=True)


def evaluation_report(all_: list[Trace], table: pd.DataFrame, folder: Path) -> Path:
    out = folder / "evaluation"
    (out / "traces" / "0").mkdir(parents=True)
    table.to_csv(out / "table.csv", index=False)
    summary(table).to_csv(out / "summary.csv", index=False)
    write_json(out / "config.json", {"problems": [t.id for t in all_], "teacher": all_[0].prompt})
    with TraceWriter(out / "traces" / "0" / "relay.jsonl") as writer:
        for trace in all_:
            writer.write(trace)
    return report(out)


def sweep(texts: tuple[str, ...], folder: Path) -> str:
    """A sweep whose factors, levels, results and failures are the texts."""
    out = folder / "sweep"
    points = tuple(Point(f"{i:016x}", {"a": t}, {texts[0]: t}, 0) for i, t in enumerate(texts))
    plan = Plan(texts[0], folder / "n.ipynb", points, {texts[0]: list(texts)}, plane=(texts[1], texts[2]))
    for number, point in enumerate(points):
        record = {"levels": point.levels, "parameters": point.parameters, "seed": 0, "version": texts[3]}
        record |= {"commit": texts[4], "seconds": 1.0, "values": {texts[1]: 0.1 * number, texts[2]: 0.5}, "error": ""}
        failed = number > len(points) - 3
        record["status"] = "failed" if failed else "done"
        (out / "points" / point.key).mkdir(parents=True)
        write_json(out / "points" / point.key / (FAILED if failed else DONE), record | {"error": texts[5] * failed})
    return sweep_page(plan, collect(plan, out), out)


def notebook(all_: list[Trace]) -> str:
    """The export of a notebook whose outputs are views."""
    outputs = [trace_html(all_[0]), player(all_).html, atlas(all_).html]
    cell = nbformat.v4.new_code_cell("trace")
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": text}) for text in outputs]
    return HTMLExporter(mathjax_url="", require_js_url="").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))[0]


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """The elements of a page in order, each with the names of its attributes, as an HTML5 parser sees them."""
    import html5lib

    root = html5lib.parse(page.replace(plotly_script(), ""), namespaceHTMLElements=False)
    return [(str(e.tag), tuple(sorted(map(str, e.attrib)))) for e in root.iter() if isinstance(e.tag, str)]


NOTEBOOK = (
    f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nfrom hostile_pages import *",
    "from IPython.display import display\nfrom relaylab.trace import to_frame\nall_ = traces(PAYLOADS)",
    "for trace in all_:\n    display(trace)",
    "player(all_)",
    "atlas(all_)",
    "atlas(all_, by=list(PAYLOADS), name=PAYLOADS[0])",
    "to_frame(all_)",
    "show_figure(figures.token_entropy(all_[0]))",
    "runs = [Run(t.id, t.id, t.prompt, t) for t in all_[:6]]\nside_by_side(runs)",
    "playground = Playground(students=['student'], teachers=['none'])\nplayground._set_runs(runs)\n"
    "playground.picked = {'suite': PAYLOADS[0], 'question': PAYLOADS[0], 'answer': PAYLOADS[1]}\n"
    "playground.report(PAYLOADS[2], failed=True)\nplayground",
    "pair = load_pair('student', 'none')\n"
    "what_if = CounterfactualView(pair.solve(PAYLOADS[0], max_tokens=8), pair)\nwhat_if._set_runs(runs)\nwhat_if",
    "raise ValueError(PAYLOADS[2])",
)
TOUCH = """(root) => {
  const all = root.querySelectorAll("*");
  for (const e of all) for (const kind of ["click", "mouseover", "focus", "toggle", "input"])
    e.dispatchEvent(new Event(kind, { bubbles: true }));
  return all.length;
}"""


def watch(page: Any) -> list[str]:
    """A list that gets what a page's texts run, and what it fetches from elsewhere."""
    seen: list[str] = []
    page.expose_function("ran", lambda x: seen.append(f"ran {x}"))
    ours = ("file:", "data:", "blob:", "about:", "http://127.0.0.1", "ws://127.0.0.1")
    page.on("request", lambda r: None if r.url.startswith(ours) else seen.append(r.url))
    page.on("dialog", lambda d: seen.append(d.message))
    return seen


def in_browser(folder: Path) -> Iterator[tuple[str, list[str], int]]:
    """Each kind of page in Chromium: its name, what it did, its number of elements."""
    from playwright.sync_api import sync_playwright
    from real_jupyterlab import CHROMIUM

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name, make in pages(PAYLOADS, folder):
            (folder / "page.html").write_text(make(), encoding="utf-8", errors="replace")
            page = browser.new_page()
            seen = watch(page)
            page.goto((folder / "page.html").as_uri(), timeout=300_000)
            elements = page.evaluate(f"({TOUCH})(document)")
            page.wait_for_timeout(500)
            yield name, seen, elements
            page.close()
        browser.close()


def in_jupyterlab(folder: Path) -> Iterator[tuple[str, list[str], int]]:
    """The outputs of a notebook that is run from JupyterLab's menu. The last cell fails, with a hostile message."""
    from real_jupyterlab import ERROR, SECONDS, open_jupyter, write_notebook

    (folder / "home").mkdir()
    book = write_notebook(folder / "hostile.ipynb", *NOTEBOOK)
    with open_jupyter(folder, folder / "home") as jupyter:
        lab = jupyter(book.name)
        seen = watch(lab.page)
        lab.run_all()
        errors = lab.page.locator(ERROR)
        errors.first.wait_for(timeout=2 * SECONDS * 1000, state="attached")
        lab.page.wait_for_timeout(5000)
        raised = errors.all_text_contents()  # before clicks fold the outputs
        outputs = lab.page.locator(".jp-OutputArea-output").count()
        elements = lab.page.evaluate(f"({TOUCH})(document.querySelector('.jp-Notebook'))")
        lab.page.wait_for_timeout(5000)
        seen += [f"formula {text}" for text in lab.page.locator("mjx-container").all_inner_texts()]
        if len(raised) != 1 or "ran(1)" not in raised[0]:
            seen += raised
        yield f"notebook of {outputs} outputs", seen, elements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", action="store_true", help="in Chromium instead of a parser")
    parser.add_argument("--jupyterlab", action="store_true", help="a notebook in JupyterLab in Chromium")
    args = parser.parse_args()
    if args.browser or args.jupyterlab:
        sys.path.append(str(Path(__file__).parents[1] / "tests"))
        with tempfile.TemporaryDirectory() as name:
            done = list((in_browser if args.browser else in_jupyterlab)(Path(name)))
        for kind, seen, elements in done:
            print(f"{'BAD' if seen else 'good'} {kind}: {elements} elements; {seen[:5]}", flush=True)
        print(f"{len(done)} pages x {len(PAYLOADS)} texts: {sum(bool(s) for _, s, _ in done)} ran or fetched something")
        sys.exit(any(seen for _, seen, _ in done))
    # The same texts without a sign: what is shown of control characters stays.
    harmless = tuple(re.sub(r"[!-/:-@\[-`{-~]", "x", text) + str(i) for i, text in enumerate(PAYLOADS))
    tries = bad = 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        for (name, make), (_, usual) in zip(pages(PAYLOADS, Path(one)), pages(harmless, Path(two)), strict=True):
            tries += 1
            found, expected = shape(make()), shape(usual())
            if found != expected:
                bad += 1
                extra = sorted({str(e) for e in found} - {str(e) for e in expected})
                print(f"BAD {name}: {len(found)} elements instead of {len(expected)}; {extra[:5]}", flush=True)
    print(f"{tries} pages x {len(PAYLOADS)} texts: {bad} have other elements than with harmless texts")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
