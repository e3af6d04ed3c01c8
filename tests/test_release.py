"""What a release holds: the wheel and the source archive, and a wheel that works where there is no repository.

    python -m pytest -m release tests/test_release.py

The package is that of the wheel alone. Its dependencies are those of the running Python, and nothing is downloaded.
With ``RELAYLAB_EMPTY=1`` pip installs them, too, into an empty environment, as ``constraints.txt`` pins them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from relaylab.tasks.suites import problem

pytestmark = pytest.mark.release
ROOT = Path(__file__).parents[1]
MAX_BYTES = 12_000_000


def python(*words: object, cwd: Path, program: str | Path = sys.executable, **env: str) -> str:
    """Run a Python; its standard output. The test fails if it fails."""
    command = [str(program), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=clean() | env, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean() -> dict[str, str]:
    """The environment without what leads to the repository."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source archive; the wheel is built from what the archive holds."""
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", out, cwd=ROOT)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def relaylab(archives, tmp_path_factory):
    """The command line of the wheel, in an empty folder; returns what it prints."""
    home, place = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    env, program = {"PYTHONUTF8": "1", "COLUMNS": "200"}, sys.executable
    if os.environ.get("RELAYLAB_EMPTY"):
        venv.create(home, with_pip=True)
        program = str(home / ("Scripts" if os.name == "nt" else "bin") / "python")
        constraints = ROOT / "constraints.txt"
        install = ("-m", "pip", "install", "-q", "--no-compile")
        if index := os.environ.get("RELAYLAB_TORCH"):  # arguments for pip that avoid CUDA
            pin = re.search(r"^torch==.*", constraints.read_text(encoding="utf-8"), re.M)[0]
            python(*install, pin, *index.split(), cwd=place, program=program)
        python(*install, "-c", constraints, archives[0], cwd=place, program=program)
    else:
        python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", home, archives[0], cwd=place)
        env["PYTHONPATH"] = str(home)
    where = python("-c", "import relaylab; print(relaylab.__file__)", cwd=place, program=program, **env)
    assert Path(where.strip()).is_relative_to(home), "not the repository"

    def run(*words: object) -> str:
        return python("-m", "relaylab", *words, cwd=place, program=program, **env)

    run.place, run.program, run.env = place, program, env
    return run


def test_the_archives_are_small_and_the_index_would_take_them(archives):
    assert {path.name.split("-")[0] for path in archives} == {"relaylab"}
    assert [path for path in archives if path.stat().st_size > MAX_BYTES] == []
    python("-m", "twine", "check", "--strict", *archives, cwd=ROOT)


def test_the_wheel_has_what_it_runs_and_nothing_else(archives):
    names = zipfile.ZipFile(archives[0]).namelist()
    assert {name.split("/")[0] for name in names} == {
        "relaylab",
        next(n for n in names if "METADATA" in n).split("/")[0],
    }
    kinds = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert kinds <= {
        ".py",
        ".pyi",
        ".typed",
        ".js",
        ".css",
        ".svg",
        ".csv",
        ".gz",
        ".json",
        ".jsonl",
        ".yaml",
        ".safetensors",
        ".ipynb",
        ".md",
        ".jinja",
    }
    lessons = [n for n in names if n.startswith("relaylab/lessons/notebooks/") and n.endswith(".ipynb")]
    assert len(lessons) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    weights = {n.removeprefix("relaylab/zoo/weights/") for n in names if n.endswith(".safetensors")}
    folder = ROOT / "relaylab/zoo/weights"
    assert weights == {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}


def test_the_source_archive_holds_the_package_its_lessons_and_its_pages(archives):
    """The rest is in the repository."""
    with tarfile.open(archives[1]) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if name.count("/")}
    assert tops == {
        "relaylab", "notebooks", "docs", "pyproject.toml", "constraints.txt", "LICENSE", "CITATION.cff", "README.md",
        "CHANGELOG.md", "PKG-INFO", ".gitignore",
    }  # fmt: skip


def test_lab_copies_the_lessons(relaylab):
    assert "the lessons are in mine" in relaylab("lab", "mine", "--no-open")
    copied = {path.name for path in (relaylab.place / "mine" / "notebooks").glob("*.ipynb")}
    assert copied == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert (relaylab.place / "mine" / "docs" / "training.md").read_text(encoding="utf-8").startswith("# Training")


def test_lab_serves_the_copied_lessons(relaylab):
    runtime = relaylab.place / "runtime"
    options = ("--no-browser", "--ServerApp.port=0", "--allow-root")
    command = [relaylab.program, "-m", "relaylab", "lab", "served", *(f"--jupyter={option}" for option in options)]
    env = clean() | relaylab.env | {"JUPYTER_RUNTIME_DIR": str(runtime)}
    process = subprocess.Popen(command, cwd=relaylab.place, env=env)
    try:
        for _ in range(600):
            if (found := [*runtime.glob("jpserver-*.json")]) or process.poll() is not None:
                break
            time.sleep(0.2)
        told = json.loads(found[0].read_text(encoding="utf-8"))
        for folder, name in (("notebooks", "START.ipynb"), ("docs", "evaluation.md")):  # lessons link to docs
            asked = f"{told['url']}api/contents/{folder}?token={told['token']}"
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert name in {entry["name"] for entry in json.load(answer)["content"]}
        pages = [path.read_text(encoding="utf-8") for path in runtime.glob("*-open.html")]
        assert any("/lab/tree/notebooks/START.ipynb" in page for page in pages), pages
        stop = urllib.request.Request(f"{told['url']}api/shutdown?token={told['token']}", method="POST")
        with urllib.request.urlopen(stop, timeout=60):
            pass
        assert process.wait(120) == 0
    finally:
        process.kill()


def test_solve_relays_with_the_shipped_weights(relaylab):
    question = problem("tiles", 0)
    trace = json.loads(relaylab("solve", question.question, "--student", "relay", "--json"))
    assert re.search(r"\\boxed\{(\d+)\}", "".join(trace["pieces"]))[1] == question.answer
    assert trace["calls"][0]["delivered"] > 0


def test_evaluate_compares_systems(relaylab):
    table = relaylab(
        "evaluate", "--suite", "tiles", "--limit", 4, "--methods", "student teacher relay", "--out", "runs/e"
    )
    correct = {name: float(share) for name, share in re.findall(r"│ (\w+) +│ +([\d.]+) %", table)}
    assert correct.keys() == {"student", "teacher", "relay"}, table
    assert correct["student"] < min(correct["relay"], correct["teacher"])
    assert len(list((relaylab.place / "runs/e/traces/0").glob("*.jsonl"))) == 3


def test_the_first_lesson_runs(relaylab):
    relaylab("notebooks", "run", "00_first_relay", "--smoke", "--out", "runs/lessons", "--timeout", 600)
    assert (relaylab.place / "runs/lessons/00_first_relay/result.json").exists()
