"""A copy of the lessons: what the reader changed stays. Where lessons are found, and in which size they run."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from jupyterlab_server.settings_utils import _get_overrides
from test_notebooks_run import notebook
from typer.testing import CliRunner

from relaylab import cli, lab
from relaylab import notebook_commands as notebooks
from relaylab.lab import RECORD, Copied, copy_lessons

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path) -> Path:
    """Two lessons, their sizes and a page."""
    files = {"00_a.ipynb": "a1", "01_b.ipynb": "b1", "START.ipynb": "start", "smoke.yaml": "00_a: {}"}
    files |= {"measured/sweep.csv": "numbers", "draft.py": "no lesson", "../docs/page.md": "page1"}
    for name, text in files.items():
        path = tmp_path / "home" / "notebooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "home"


def states(done: list[Copied]) -> dict[str, str]:
    return {Path(file.name).name: file.state for file in done}


def test_a_copy_is_made_and_then_left_alone(home, tmp_path):
    mine = tmp_path / "deep" / "mine"
    done = copy_lessons(mine, home)
    names = ["00_a.ipynb", "01_b.ipynb", "START.ipynb", "smoke.yaml", "measured/sweep.csv"]
    assert [file.name for file in done] == [*(f"notebooks/{name}" for name in names), "docs/page.md"]
    assert {file.state for file in done} == {"new"}
    assert (mine / "notebooks" / "01_b.ipynb").read_text() == "b1"
    before = (mine / "notebooks" / "01_b.ipynb").stat().st_mtime_ns
    assert set(states(copy_lessons(mine, home)).values()) == {"current"}
    assert (mine / "notebooks" / "01_b.ipynb").stat().st_mtime_ns == before


def test_links_and_pictures_of_copied_pages_lead_somewhere(tmp_path):
    copy_lessons(tmp_path / "mine", ROOT)
    found = [
        (page, link)
        for page in (tmp_path / "mine").rglob("*.md")
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert any(link.endswith(".svg") for _, link in found)
    assert [(page.name, link) for page, link in found if not (page.parent / link).exists()] == []


def test_a_new_version_replaces_what_nobody_touched_and_nothing_else(home, tmp_path):
    mine = tmp_path / "mine"
    copy_lessons(mine, home)
    (mine / "notebooks" / "00_a.ipynb").write_text("my answers")
    assert states(copy_lessons(mine, home))["00_a.ipynb"] == "kept"
    assert not list(mine.glob("**/*.new*")), "there is no newer version to put beside it"

    for name in ("00_a", "01_b"):
        (home / "notebooks" / f"{name}.ipynb").write_text(f"{name}, version 2")
    done = {file.name: file for file in copy_lessons(mine, home)}
    assert done["notebooks/00_a.ipynb"] == Copied("notebooks/00_a.ipynb", "kept", "notebooks/00_a.new.ipynb")
    assert done["notebooks/01_b.ipynb"].state == "updated"
    texts = {path.name: path.read_text() for path in (mine / "notebooks").glob("*.ipynb")}
    assert texts.pop("START.ipynb") == "start"
    assert texts == {"00_a.ipynb": "my answers", "00_a.new.ipynb": "00_a, version 2", "01_b.ipynb": "01_b, version 2"}
    assert [file.beside for file in copy_lessons(mine, home)] == [None] * 6, "once is enough"


def test_an_untouched_neighbour_makes_room_and_a_touched_one_does_not(home, tmp_path):
    mine, source = tmp_path / "mine", home / "notebooks" / "00_a.ipynb"
    copy_lessons(mine, home)
    (mine / "notebooks" / "00_a.ipynb").write_text("my answers")
    for version in ("two", "three"):
        source.write_text(version)
        copy_lessons(mine, home)
    assert (mine / "notebooks" / "00_a.new.ipynb").read_text() == "three"
    (mine / "notebooks" / "00_a.new.ipynb").write_text("my second answers")
    source.write_text("four")
    copy_lessons(mine, home)
    found = {p.name: p.read_text() for p in (mine / "notebooks").glob("00_a*")}
    assert found == {"00_a.ipynb": "my answers", "00_a.new.ipynb": "my second answers", "00_a.new2.ipynb": "four"}


def test_whoever_takes_the_new_version_gets_the_next_one(home, tmp_path):
    mine, source = tmp_path / "mine", home / "notebooks" / "00_a.ipynb"
    copy_lessons(mine, home)
    target = mine / "notebooks" / "00_a.ipynb"
    target.write_text("my answers")
    source.write_text("two")
    copy_lessons(mine, home)
    (mine / "notebooks" / "00_a.new.ipynb").replace(target)
    source.write_text("three")
    assert states(copy_lessons(mine, home))["00_a.ipynb"] == "updated"
    target.unlink()
    assert states(copy_lessons(mine, home))["00_a.ipynb"] == "new"


@pytest.mark.parametrize("record", [None, "{", "[]"])
def test_without_a_record_everything_is_the_readers_own(home, tmp_path, record):
    mine = tmp_path / "mine"
    (mine / "notebooks").mkdir(parents=True)
    (mine / "notebooks" / "00_a.ipynb").write_text("was here before")
    if record is not None:
        (mine / RECORD).write_text(record)
    new = dict.fromkeys(("01_b.ipynb", "START.ipynb", "smoke.yaml", "sweep.csv", "page.md"), "new")
    assert states(copy_lessons(mine, home)) == new | {"00_a.ipynb": "kept"}
    assert (mine / "notebooks" / "00_a.ipynb").read_text() == "was here before"


def test_where_no_copy_can_be(home, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", home / "docs" / ".."):
        with pytest.raises(ValueError, match="is a file, or where the lessons come from"):
            copy_lessons(place, home)


@pytest.fixture
def door(home, monkeypatch):
    """The command over the two lessons and a stand-in for JupyterLab; returns (run, what was started)."""
    started, app = [], cli.app

    class Stand:
        def __init__(self, command, cwd, env):
            started.append((command, cwd))
            self.config = env["JUPYTER_CONFIG_PATH"]
            assert env["PYTHONSTARTUP"] == os.environ.get("PYTHONSTARTUP", str(lab.WARM_START))

        def wait(self):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            with pytest.MonkeyPatch.context() as patch:  # as JupyterLab's server reads it
                patch.setenv("JUPYTER_CONFIG_PATH", self.config)
                overrides, error = _get_overrides("")
            chosen = overrides["@jupyterlab/apputils-extension:notification"]
            assert (chosen["fetchNews"], chosen["checkForUpdates"], error) == ("false", False, "")
            return 3

    monkeypatch.setattr(lab, "lessons_home", lambda: home)
    monkeypatch.setattr(subprocess, "Popen", Stand)
    return lambda *words: CliRunner().invoke(app, ["lab", *map(str, words)]), started


def test_jupyterlab_is_this_pythons_opens_start_and_asks_for_no_news(door, tmp_path):
    run, started = door
    before = signal.getsignal(signal.SIGINT)
    assert run(tmp_path / "mine").exit_code == 3, "JupyterLab's own exit code"
    assert run(tmp_path / "mine", "--jupyter=--no-browser").exit_code == 3
    root = f"--ServerApp.root_dir={tmp_path / 'mine'}"
    words = [sys.executable, "-m", "jupyterlab", "notebooks/START.ipynb", root]
    assert started == [(words, tmp_path / "mine"), ([*words, "--no-browser"], tmp_path / "mine")]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_kernel_is_warm_and_its_names_are_the_readers(door, tmp_path, monkeypatch):
    left = runpy.run_path(str(lab.WARM_START))
    assert [name for name in left if not name.startswith("__")] == []
    assert {"torch", "relaylab.views.playground"} <= sys.modules.keys()
    monkeypatch.setenv("PYTHONSTARTUP", "mine.py")
    run, _ = door
    assert run(tmp_path / "mine").exit_code == 3, "a startup file of the reader's stays"


def test_copying_alone_says_what_it_did(door, home, tmp_path):
    run, started = door
    mine = tmp_path / "mine"
    assert "6 new" in run(mine, "--no-open").output
    (mine / "notebooks" / "00_a.ipynb").write_text("my answers")
    (home / "notebooks" / "00_a.ipynb").write_text("two")
    told = run(mine, "--no-open").output
    assert "1 kept, 5 current" in told
    assert "notebooks/00_a.ipynb is as you left it; the newer version is notebooks/00_a.new.ipynb" in told
    assert not started


def test_a_wheel_holds_the_lessons_where_they_are_looked_for():
    """The mapping of pyproject.toml and ``SHIPPED`` are one place, said twice."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = notebooks.SHIPPED.relative_to(ROOT).as_posix()
    assert wheel["sources"] == {name: f"{shipped}/{name}" for name in ("notebooks", "docs")}
    assert set(wheel["only-include"]) == {"relaylab", "notebooks", "docs"}


def test_lessons_are_found_here_then_in_the_package_then_around_it(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebooks.lessons_home() == ROOT, "a checkout"
    assert notebooks.lesson_folder() == ROOT / "notebooks"
    monkeypatch.setattr(notebooks, "SHIPPED", home)
    assert notebooks.lesson_folder() == home / "notebooks", "an installed package"
    (tmp_path / "notebooks").mkdir()
    assert notebooks.lesson_folder() == home / "notebooks", "an empty folder is none"
    (tmp_path / "notebooks" / "mine.ipynb").touch()
    assert notebooks.lesson_folder() == Path("notebooks")
    monkeypatch.setattr(notebooks, "SHIPPED", tmp_path / "elsewhere" / "relaylab" / "lessons")
    with pytest.raises(ValueError, match="has no lessons"):
        notebooks.lessons_home()


def test_smoke_gives_each_notebook_its_own_size(tmp_path, monkeypatch):
    calls, app = [], typer.Typer()
    app.command("run")(notebooks.notebooks_run)

    def stand_in(path, folder, given, **options):
        calls.append((path.stem, given))
        return {"status": "done", "seconds": 1, "error": None}

    monkeypatch.setattr("relaylab.sweep.notebook.execute", stand_in)
    for name in ("1_a", "2_b", "3_c"):
        notebook(tmp_path / f"{name}.ipynb", "steps: int = 100\nlabel: str = 'x'")
    (tmp_path / "smoke.yaml").write_text("1_a: {steps: 2}\n2_b: {}\n")
    run = lambda *words: CliRunner().invoke(app, ["--folder", str(tmp_path), *words])  # noqa: E731
    assert run("--smoke").exit_code == 0
    assert calls == [("1_a", {"steps": 2}), ("2_b", {}), ("3_c", {})]
    calls.clear()
    run("--smoke", "-p", "steps=7", "1_a")
    run("1_a")
    assert calls == [("1_a", {"steps": 7}), ("1_a", {})]
    (tmp_path / "smoke.yaml").write_text("1_a: {stepps: 2}\n")
    assert "did you mean 'steps'" in str(run("--smoke").exception)
    for text, told in (("1_a: 3", "write one line per notebook"), ("1_a: [", "not YAML")):
        (tmp_path / "smoke.yaml").write_text(text)
        assert told in str(run("--smoke").exception)
    (tmp_path / "smoke.yaml").unlink()
    assert "has no smoke.yaml" in str(run("--smoke").exception)


def test_what_an_editor_left_among_the_lessons_is_no_lesson(home, tmp_path):
    for folder, name in (("capstone", "my_relay-checkpoint.py"), ("measured/a", "b-checkpoint.csv")):
        left = home / "notebooks" / folder / ".ipynb_checkpoints" / name
        left.parent.mkdir(parents=True)
        left.write_text("older")
    done = copy_lessons(tmp_path / "mine", home)
    assert not [file.name for file in done if "checkpoint" in file.name]
