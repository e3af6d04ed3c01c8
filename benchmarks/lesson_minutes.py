"""How long a lesson takes: `python benchmarks/lesson_minutes.py`. The guide's table has these numbers.

Words at 180 per minute, 3 seconds per line of code, 25 seconds per output, one minute per prediction and its field.
Exercises are not counted, since they have minutes of their own; nor are import lines and a lesson's last cell.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
SHOWS = {"print", "display"}  # calls that show something, wherever they stand in a cell


@dataclass(frozen=True, slots=True)
class Counts:
    """What a lesson, or a section of it, asks a reader to go through."""

    words: int = 0
    lines: int = 0
    outputs: int = 0
    predictions: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def minutes(self) -> float:
        """How long it takes."""
        return self.words / 180 + self.lines / 20 + 25 / 60 * self.outputs + self.predictions


def of_text(text: str) -> Counts:
    """A text cell. Where links lead to is not read.

    >>> of_text("Read [this page](https://example.org). *A prediction to make:* why?")
    Counts(words=8, lines=0, outputs=0, predictions=1)
    """
    words = re.sub(r"\]\([^)]*\)", "]", text)
    return Counts(len(words.split()), predictions=len(re.findall(r"predictions?\b[^.]{0,9} to make", text, re.I)))


def of_code(code: str) -> Counts:
    """A code cell.

    >>> of_code("import math\\n\\nx = math.pi  # a number\\nx")
    Counts(words=0, lines=2, outputs=1, predictions=0)
    """
    tree = ast.parse(code)
    if not tree.body:
        return Counts()
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in imports)
    lines = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in code.splitlines())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if "Predict" in called:  # the text before it asks for the prediction, and has a minute for it
        return Counts()
    shows = (isinstance(tree.body[-1], ast.Expr) and ast.unparse(tree.body[-1]) != "setup()") or called & SHOWS
    return Counts(lines=lines - imported, outputs=bool(shows) + 0)


def sections(path: Path) -> dict[str, Counts]:
    """The counts of each section of a lesson, by its heading; up to the exercises."""
    found, heading = {"": Counts()}, ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if "rl.result(" not in source:
                found[heading] += of_code(source)
            continue
        for part in re.split(r"^(?=## )", source, flags=re.M):
            if part.startswith("## Exercises"):
                return found
            if part.startswith("## "):
                heading = part.split("\n", 1)[0].removeprefix("## ")
                found[heading] = Counts()
            found[heading] += of_text(part)
    return found


def minutes(path: Path) -> int:
    """The minutes of a lesson, rounded to five."""
    return 5 * round(sum(part.minutes for part in sections(path).values()) / 5)


def main() -> None:
    for path in sorted(FOLDER.glob("[0-9]*.ipynb")):
        parts = sections(path)
        whole = sum(parts.values(), Counts())
        print(f"{path.stem}: {whole.minutes:.0f} min, so {minutes(path)}; {whole}")
        for heading, counts in parts.items():
            print(f"    {counts.minutes:4.1f}  {heading or 'beginning'}")


if __name__ == "__main__":
    main()
