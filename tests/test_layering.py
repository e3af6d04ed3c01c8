"""Imports point downwards only (docs/design.md), and what is slow to import stays where it belongs."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "relaylab"

# Top to bottom, as in docs/design.md. A module may import from its own package and from what stands further down.
ORDER = [
    *(
        "__main__",
        "cli",
        "lab",
        "warm_start",
        "submissions",
        "notebook_commands",
        "measure_commands",
        "pages",
        "options",
        "doctor",
        "memory",
    ),
    *("views", "sweep", "server", "zoo", "evaluation", "training", "relay", "engine", "tasks"),
    *("cost_by_teacher", "cost", "trace", "files", "settings", "defaults", "stopping", "call_tag", "version"),
]
RANK = {name: rank for rank, name in enumerate(ORDER)}
# The package itself is a facade over everything; only a door may look at it from inside.
FACADE, DOORS = "relaylab", ORDER[:11]
SHARED_NAMES = {"main"}  # an entry point each
NEVER = {"views": {"torch", "transformers"}, "trace": {"torch", "transformers"}, "call_tag": {"torch", "transformers"}}


def imports(file: Path, package: Path) -> Iterator[str]:
    """Every module that a file imports, as an absolute name: anywhere in it, relative or not, by string or not."""
    here = (package.name, *file.relative_to(package).with_suffix("").parts)  # ("relaylab", "viz", "view")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                (*here[: len(here) - node.level], *filter(None, [node.module])) if node.level else [node.module]
            )
            # `from relaylab import trace` is an import of relaylab.trace, `from relaylab import load_pair` is not.
            for alias in node.names:
                path = package.parent.joinpath(*base.split("."), alias.name)
                yield f"{base}.{alias.name}" if path.is_dir() or path.with_suffix(".py").exists() else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def violations(package: Path) -> list[str]:
    """What breaks the order, one line each."""
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue  # the one door that may import anything (lazily: see below)
        if parts[0] not in RANK:
            found.append(f"{file.name} has no place in the order of docs/design.md")
            continue
        for name in imports(file, package):
            first, *rest = name.split(".")
            where = f"{'.'.join(parts)} imports {name}"
            if first in NEVER.get(parts[0], ()):
                found.append(f"{where}, which its layer does without")
            if first != FACADE:
                continue
            if not rest or rest[0] not in RANK:
                if parts[0] not in DOORS:
                    found.append(f"{where}, the facade above it")
            elif RANK[rest[0]] < RANK[parts[0]]:
                found.append(f"{where}, which stands above it")
    return found


def test_imports_point_downwards():
    assert not violations(PACKAGE)


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("engine/engine.py", "from relaylab.relay import relay", "stands above"),
        ("engine/engine.py", "from relaylab.relay.relay import Relay", "stands above"),
        ("engine/engine.py", "def f():\n    from ..views import trace_view", "stands above"),
        ("engine/engine.py", "from .. import cli", "stands above"),
        ("engine/engine.py", "if TYPE_CHECKING:\n    import relaylab.training.grpo", "stands above"),
        ("engine/engine.py", "importlib.import_module('relaylab.cli')", "stands above"),
        ("engine/engine.py", "from relaylab import load_pair", "facade"),
        ("call_tag.py", "from relaylab.trace import Trace", "stands above"),
        ("views/trace_view.py", "def f():\n    import torch.nn", "does without"),
        ("views/trace_view.py", "from transformers import AutoTokenizer", "does without"),
        ("extra.py", "", "no place"),
        (
            "views/trace_view.py",
            "from relaylab.relay.relay import Relay\nfrom ..trace import Trace\nfrom . import theme",
            None,
        ),
        ("trace.py", "from relaylab.call_tag import strip_calls", None),
        ("cli.py", "import relaylab as rl\nfrom relaylab import __version__, sweep", None),
        ("__init__.py", "def __getattr__(name):\n    from relaylab.cli import main", None),
    ],
)
def test_the_check_sees_every_kind_of_import(tmp_path, file, source, complaint):
    package = tmp_path / "relaylab"
    for name in ("views", "engine", "relay", "training"):
        (package / name).mkdir(parents=True)
    for name in ("cli", "sweep", "trace", "call_tag", "views/theme", "relay/relay"):
        (package / f"{name}.py").touch()
    (package / file).write_text(source)
    found = violations(package)
    assert [complaint in line for line in found] == [True] if complaint else not found


def loaded_after(*modules: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after importing these."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_ground_floor_and_the_facade_import_nothing_slow():
    slow = {"torch", "transformers", "datasets", "pandas", "numpy", "plotly", "openai", "IPython"}
    assert not slow & loaded_after("relaylab", "relaylab.call_tag", "relaylab.trace", "relaylab.version")


def test_viz_reads_traces_without_torch():
    modules = [m.name for m in pkgutil.walk_packages([str(PACKAGE / "views")], "relaylab.views.")]
    assert not {"torch", "transformers"} & loaded_after("relaylab.views", *modules)


def test_no_public_name_is_defined_in_two_modules():
    places = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file.relative_to(PACKAGE).as_posix())
    assert {name for name, files in places.items() if len(files) > 1} <= SHARED_NAMES


def test_no_file_of_the_package_is_over_400_lines():
    lengths = {f.relative_to(ROOT).as_posix(): len(f.read_text().splitlines()) for f in PACKAGE.rglob("*.py")}
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_nothing_names_the_machine_it_was_written_on():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs to the project is not known")
    machine = re.compile("|".join(["/wor" + "k/", "/tm" + "p/w/", "/ho" + r"me/\w", "/ro" + "ot/"]).encode())
    named = []
    for name in listed.stdout.splitlines():
        file = ROOT / name
        if (
            file.is_file()
            and file.suffix not in {".safetensors", ".png"}
            and (hit := machine.search(file.read_bytes()))
        ):
            named.append(f"{name}: {hit[0].decode()}")
    assert not named
