"""Write badges into README.md and the lessons' first cells, from the address of the repository in pyproject.toml.

    python website/badges.py

Without a public address there is none, and this removes them. Lessons get links, not pictures: they fetch nothing.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = """[![Tests]({address}/actions/workflows/tests.yml/badge.svg)]({address}/actions/workflows/tests.yml)
[![PyPI](https://img.shields.io/pypi/v/relaylab)](https://pypi.org/project/relaylab/)
[![Python](https://img.shields.io/pypi/pyversions/relaylab)](https://pypi.org/project/relaylab/)
[![Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{place}/HEAD?labpath=notebooks/START.ipynb)
[![Codespaces](https://github.com/codespaces/badge.svg)](https://codespaces.new/{place})"""
LESSON = """Run it without installing: \
[Binder](https://mybinder.org/v2/gh/{place}/HEAD?labpath=notebooks/{lesson}.ipynb), \
[Codespaces](https://codespaces.new/{place}), [Colab](../docs/cloud.md#colab)."""
OLD = re.compile(r"\n\n(\[!\[Tests\]|Run it without installing: )(.+\n?)+")


def stamped(text: str, badges: str) -> str:
    """A Markdown text with these badges below its title, instead of those that it has.

    Args:
        text: begins with a title.
        badges: a paragraph, or "" for none.
    """
    title, _, rest = OLD.sub("\n", text, count=1).partition("\n")
    return f"{title}\n\n{badges}\n{rest}" if badges else f"{title}\n{rest}"


def stamped_files(root: Path) -> dict[Path, str]:
    """README.md and the lessons as they should be.

    Args:
        root: the repository.
    """
    address = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    place = address.removeprefix("https://github.com/")
    public = place != address
    words = README.format(address=address, place=place) if public else ""
    files = {root / "README.md": stamped((root / "README.md").read_text(encoding="utf-8"), words)}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        words = LESSON.format(place=place, lesson=path.stem) if public else ""
        first = book["cells"][0]
        first["source"] = stamped("".join(first["source"]), words).splitlines(keepends=True)
        files[path] = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    return files


if __name__ == "__main__":
    for path, text in stamped_files(ROOT).items():
        path.write_text(text, encoding="utf-8", newline="\n")
