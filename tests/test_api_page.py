"""docs/api.md is what docs/make_api.py makes of the docstrings, and docs/make_api.py makes the right thing of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def make_api():
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make_api):
    assert make_api.page() == (DOCS / "api.md").read_text(encoding="utf-8"), "run: python docs/make_api.py"


def test_everything_that_the_package_offers_has_an_entry():
    import relaylab as rl

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert not [name for name in rl.__all__ if name != "__version__" and f"### `rl.{name}`" not in text]


def test_docstrings_become_markdown(make_api, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text('_HOME = {"Box": "things", "SIZE": "things"}\n')
    (package / "things.py").write_text('''"""Boxes & <things>."""
from dataclasses import dataclass

SIZE = 3


@dataclass
class Box:
    """A box of ``<b>`` and <i>.

    size: in cm, and it
        goes on here.

    >>> Box(1).double
    2

        a   table
    """

    size: int = 1

    @property
    def double(self) -> int:
        return 2 * self.size

    def put(self, what: str, *, often: int = 1) -> None:
        """Put it in.

        Raises nothing.
        """

    def _hidden(self): ...


class Opener:
    def __init__(self, key): ...


def shake(box: Box) -> str:
    """>>> shake(Box(1))"""


def _private(): ...
''')
    text = make_api.page(package)
    _, rest = text.split("### `rl.Box`")
    entry, rest = rest.split("### `rl.SIZE`")
    assert "class Box(size: int = 1)" in entry
    assert "A box of `<b>` and &lt;i>.\n\nsize: in cm, and it\ngoes on here.\n" in entry
    assert "```python\n>>> Box(1).double\n2\n```\n\n```text\na   table\n```" in entry
    assert "- `.double -> int`\n- `.put(what: str, *, often: int=1) -> None`: Put it in.\n" in entry
    assert "A constant of `relaylab.things`" in rest
    listed = rest.split("### `relaylab.things`")[1]
    assert "Boxes & &lt;things>." in listed
    assert "- `class Opener(key)`\n- `shake(box: Box) -> str`\n" in listed
    assert "hidden" not in text
    assert "private" not in text.replace("public", "")
