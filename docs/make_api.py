"""Writes ``docs/api.md``, the reference of the package, from its docstrings.

    python docs/make_api.py           # write it
    python docs/make_api.py --check   # exit code 1 where it is not up to date

The sources are parsed, not imported, so it takes a second and needs nothing installed. What ``import relaylab as rl``
offers comes with its whole docstring, everything else that is public with its first paragraph.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "relaylab", ROOT / "docs" / "api.md"
# From the ground up; what is not named here, the doors, comes last.
LAYERS = ("trace", "command", "tasks", "models", "decoding", "training", "analysis", "viz")
HEAD = """# API reference

Written by `python docs/make_api.py` from the docstrings; do not edit. First what `import relaylab as rl` offers, then
every public name of every module. What belongs together, and why, is in [design.md](design.md).
"""
Public = ast.FunctionDef | ast.ClassDef


def page(package: Path = PACKAGE) -> str:
    """The whole reference as Markdown."""
    modules = {_dotted(path, package): ast.parse(path.read_text(encoding="utf-8")) for path in _files(package)}
    parts = [HEAD, "## `import relaylab as rl`\n"]
    for name, home in facade(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))).items():
        node = next((n for n in modules[home].body if getattr(n, "name", None) == name), None)
        parts += [_entry(f"rl.{name}", node, home)]
    parts += ["## By module\n"]
    for name, tree in modules.items():
        if listed := [node for node in tree.body if isinstance(node, Public) and not node.name.startswith("_")]:
            parts.append(f"### `relaylab.{name}`\n\n{_first(tree)}\n")
            parts.append("\n".join(_line(_signature(node), node) for node in listed) + "\n")
    return "\n".join(parts)


def facade(tree: ast.Module) -> dict[str, str]:
    """What ``import relaylab`` offers: name to module, of its imports and of its table of lazy names."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("relaylab."):
            found |= {alias.name: node.module.removeprefix("relaylab.") for alias in node.names}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            found |= ast.literal_eval(node.value)
    return {name: home for name, home in found.items() if not name.startswith("_")}


def markdown(docstring: str) -> str:
    """A docstring as Markdown: examples and indented lines as code, and no tag of ours taken for HTML.

    >>> markdown("A ``<call>`` is <short>.")
    'A `<call>` is &lt;short>.'
    """
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    if block.startswith(">>>"):
        return f"```python\n{block}\n```"
    if all(line.startswith("    ") for line in block.splitlines()):
        return f"```text\n{inspect.cleandoc(block)}\n```"
    pieces = re.split(r"(``.+?``)", block.replace("\n    ", "\n"), flags=re.DOTALL)
    return "".join(f"`{p[2:-2]}`" if p.startswith("``") else p.replace("<", "&lt;") for p in pieces)


def _entry(name: str, node: Public | None, home: str) -> str:
    """One name of the facade: signature, home, docstring, and the public methods of a class."""
    if node is None:
        return f"### `{name}`\n\nA constant of `relaylab.{home}`.\n"
    lines = [f"### `{name}`\n", f"```python\n{_signature(node)}\n```\n", f"In `relaylab.{home}`.\n"]
    lines += [markdown(ast.get_docstring(node) or "") + "\n"]
    if methods := [n for n in _methods(node) if not n.name.startswith("_")]:
        lines.append("\n".join(_line(f".{_method(n)}", n) for n in methods) + "\n")
    return "\n".join(lines)


def _methods(node: Public) -> list[ast.FunctionDef]:
    return [n for n in node.body if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []


def _is_property(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(d).endswith("property") for d in node.decorator_list)


def _method(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}{'' if _is_property(node) else f'({_arguments(node)})'}{returns}"


def _signature(node: Public) -> str:
    """As it is called. A dataclass shows its fields, another class the arguments of ``__init__``."""
    if isinstance(node, ast.FunctionDef):
        return _method(node)
    if init := next((n for n in _methods(node) if n.name == "__init__"), None):
        return f"class {node.name}({_arguments(init)})"
    fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
    return f"class {node.name}({', '.join(fields)})" if any(node.decorator_list) and fields else f"class {node.name}"


def _arguments(node: ast.FunctionDef) -> str:
    return re.sub(r"^(self|cls)(, /)?(, |$)", "", ast.unparse(node.args))


def _line(signature: str, node: ast.AST) -> str:
    told = _first(node)
    return f"- `{signature}`: {told}" if told else f"- `{signature}`"


def _first(node: ast.AST) -> str:
    """The first paragraph of a docstring as one line of Markdown; nothing where there is none but an example."""
    first = (ast.get_docstring(node) or "").split("\n\n")[0]
    return "" if not first or first.startswith(">>>") else markdown(first).replace("\n", " ")


def _files(package: Path) -> Iterator[Path]:
    found = [p for p in package.rglob("*.py") if not p.name.startswith("__") and "weights" not in p.parts]
    layers = {name: i for i, name in enumerate(LAYERS)}
    top = lambda path: path.relative_to(package).with_suffix("").parts[0]  # noqa: E731
    yield from sorted(found, key=lambda p: (layers.get(top(p), len(layers)), _dotted(p, package)))


def _dotted(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package).with_suffix("").parts)


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(text.splitlines())} lines")
