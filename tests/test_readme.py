"""What the README shows is what happens; notebooks are kept clean."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_readmes_first_snippet_prints_what_the_readme_says(capsys):
    readme = (ROOT / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    shown = re.search(r"```text\n(.*?)```", readme, re.S)[1]
    scope: dict = {}
    exec(snippet, scope)  # our own text, not a model's
    printed = capsys.readouterr().out
    for line in shown.splitlines()[:5]:
        assert line in printed
    assert "3552" in scope["trace"].text.splitlines()[-1]
    assert f"call ratio {100 * scope['trace'].call_ratio:.1f} %" in shown


def test_notebooks_are_kept_without_outputs_and_have_one_parameters_cell():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        code = [c for c in cells if c["cell_type"] == "code"]
        assert not any(c["outputs"] or c["execution_count"] for c in code), path
        assert sum("parameters" in c["metadata"].get("tags", ()) for c in cells) == 1, path
