"""The check of the site finds what is broken; lessons and formulas become pages that need nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

WEBSITE = Path(__file__).parents[1] / "website"


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, WEBSITE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def hooks():
    for needed in ("mkdocs", "latex2mathml"):
        pytest.importorskip(needed)
    return module("hooks")


def test_broken_links_and_what_is_fetched_from_elsewhere_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h2 id="here">x</h2><a href="..">up</a><img src="../gone.png">')
    good = '<a href="a/#here">1</a><a href="a/">2</a><a href="#me" id="me">3</a><a href="https://arxiv.org">4</a>'
    bad = '<a href="a/#there">5</a><a href="b/">6</a><script src="https://cdn.example/x.js"></script>'
    (tmp_path / "index.html").write_text(good)
    faults = module("build").faults
    assert faults(tmp_path) == ["a/index.html links to ../gone.png, which is not there"]
    (tmp_path / "gone.png").write_bytes(b"")
    assert faults(tmp_path) == []
    (tmp_path / "index.html").write_text(good + bad)
    assert faults(tmp_path) == [
        "index.html fetches https://cdn.example/x.js",
        "index.html links to a/#there, which has no such place",
        "index.html links to b/, which is not there",
    ]


def test_formulas_become_mathml(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="method.md"))
    html = r'<p><span class="arithmatex">\(y_{&lt;t}\)</span></p><div class="arithmatex">\[\frac{a}{b}\]</div>'
    shown = hooks.on_page_content(html, page, None, None)
    assert shown.count("<math") == 2
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in shown
    assert "arithmatex" not in shown
    assert "&lt;" in shown or "&#x0003C;" in shown, "a less-than stays text"


def test_the_first_screen_is_a_relay_where_the_page_was_built(hooks, monkeypatch, tmp_path):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    added = {}
    monkeypatch.setattr(hooks.File, "generated", lambda config, name, content: (name, content))
    files = SimpleNamespace(append=lambda file: added.update([file]), get_file_from_path=added.get)
    monkeypatch.setattr(hooks, "RELAY", tmp_path)
    hooks.on_files(files, None)
    words = "<p>a</p><!-- relay --><pre>as text</pre>\n<p>b</p>\n<!-- /relay --><p>c</p>"
    assert hooks.on_page_content(words, page, None, files) == words
    (tmp_path / "models").mkdir()
    for name in ("page.json", "index.html", "models/a.onnx.gz"):
        (tmp_path / name).write_bytes(name.encode())
    hooks.on_files(files, None)
    assert added["relay/models/a.onnx.gz"] == b"models/a.onnx.gz"
    shown = hooks.on_page_content(words, page, None, files)
    assert shown == f"<p>a</p>{hooks.FRAME}<p>c</p>"
    assert 'src="relay/index.html"' in shown
    assert "<!-- relay -->" in (hooks.ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_the_results_show_the_map_with_the_real_pair(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="results.md"))
    html = hooks.on_page_content("<!-- map --><p>a</p>", page, None, None)
    assert html.startswith('<script src="../assets/plotly.js">')
    assert html.endswith("<p>a</p>")
    assert 'class="rl-fig ' in html
    for world in ("lifelike", "wordy", "stubborn", "plain", "Qwen2.5-Coder-0.5B-Instruct"):
        assert world in html
    assert "<!-- map -->" in (hooks.ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_a_lesson_keeps_its_outputs_and_shares_one_plotly(hooks, tmp_path):
    outputs = [
        {"output_type": "display_data", "data": {"text/html": '<figure class="rl-fig x">', "text/plain": ""}},
        {"output_type": "stream", "text": ["2 < 3 \x1b[31mred\x1b[0m"]},
        {"output_type": "execute_result", "data": {"text/html": ["<b>bold</b>"], "text/plain": ["bold"]}},
    ]
    cells = [
        {
            "cell_type": "markdown",
            "source": ["# 07 · Calls\n", "see [this](00_first_relay.ipynb) [x](../docs/cloud.md#colab)"],
        },
        {"cell_type": "code", "source": ["x = 1"], "outputs": outputs},
    ]
    path = tmp_path / "07_calls.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    text = hooks._lesson(path)
    assert text.startswith("# 07 · Calls\n\n[Download this lesson](07_calls.ipynb)")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="lessons/07_calls.md"))
    assert "see [this](00_first_relay.md) [x](../cloud.md#colab)" in hooks.on_page_markdown(text, page, None, None)
    placeholders = "".join(f"<p>RELAYLAB-OUTPUT-{i}-</p>" for i in range(3))
    html = hooks.on_page_content(placeholders, page, None, None)
    assert "<pre>2 &lt; 3 red</pre>" in html
    assert "<b>bold</b>" in html
    assert html.count('<script src="../../assets/plotly.js"></script>') == 1
    assert "RELAYLAB" not in html


def test_links_of_the_repository_become_links_of_the_site(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="results.md"))
    text = "[a](../notebooks/02_grpo.ipynb) [b](../notebooks/measured/beta.csv) [c](../CHANGELOG.md) [d](cost.md#x)"
    shown = hooks.on_page_markdown(text, page, None, None)
    assert shown == "[a](lessons/02_grpo.md) [b](measured/beta.csv) [c](changelog.md) [d](cost.md#x)"
