"""Give the command line broken traces, settings, sweeps and folders: each must be refused by one line, or be read.

    python benchmarks/broken_inputs.py

A try is bad if it ends in a traceback or in "a fault of relaylab", or refuses a file without naming it. No model is
trained; a dead address stands for a server.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

import relaylab.cli as cli
from relaylab.trace import Call, Trace

DEAD = "http://127.0.0.1:9/v1"
KEYS = ("https://tok@host/x", "https://h/x?api_key=sk-aaaa", "Bearer abcdef0123456789", "AKIAABCDEFGHIJKLMNOP",
        "github_pat_11AAAAAAA0aaaaaaaaaaaaaaaa", "AIzaSyA1234567890123456789012345678901",
        "nvapi-aaaaaaaaaaaaaaaaaaaaaaa", " sk-aaaaaaaaaaaaaaaaaaaaaaaa")  # fmt: skip
Try = tuple[list[Any], str, tuple[int, ...]]  # a command, what an error has to name, the right exit codes


def traces() -> Iterator[Try]:
    """Values of other types in every field of a trace, a call and a problem; and files that are something else."""
    problem = {"id": "a", "suite": "x", "question": "q", "answer": "6", "level": "easy", "steps": []}
    call = Call(1, 3, 1, 1, 1, 1)
    good = Trace("q", [1], [5, 6, 7, 8], "scct", list("=abc"), [call], "end", [0.1] * 4, [0.1] * 4, problem=problem)
    values = (None, 5, "x", [1], {"a": 1}, True, float("nan"), -1, ["a"], [[1]], 1.5, 10**30, "\ud800")
    line = good.to_dict()
    changes = [{name: value} for name in line for value in values]
    changes += [{"calls": [line["calls"][0] | {name: value}]} for name in line["calls"][0] for value in values]
    changes += [{"problem": problem | {name: value}} for name in problem for value in values]
    contents = ["".join(json.dumps(one) + "\n" for one in (line | change, line)).encode() for change in changes]
    contents += [
        b"",
        b"\0" * 100,
        bytes(range(256)),
        b"[" * 200_000 + b"\n",
        b'{"a":' * 50_000 + b"\n",
        b"[]\n",
        b"5\n",
    ]
    for content in contents:
        for words in (["show", "t.jsonl"], ["show", "t.jsonl", "--html", "page.html"]):
            Path("t.jsonl").write_bytes(content)
            yield words, "t.jsonl", (0, 2)


def trainings() -> Iterator[Try]:
    settings = {
        "lora": ("{rank: 4}", "{use_dora: true}", "[1", "!!python/object/apply:os.system [ls]"),
        "max_steps": ("x", 1.5, 1e30),
        "teacher_options": ("{speed: 1}",), "per_device_train_batch_size": (0,), "num_problems": (10**9,),
        "temperature": ("nan", 0), "learning_rate": ("inf",), "beta": ("nan",), "max_completion_length": ("x",),
        "filter_threshold": ("true",), "student": ("null",), "seed": ("x",),
        "keep_rollouts": (-1,),
        "hub_token": ("hf_" + "a" * 26,), "save_strategy": ("epoch",), "top_p": (0.5,), "use_vllm": ("true",),
        "teacher": (DEAD,), "use_liger_kernel": ("true",), "max_stepps": (3,),
    }  # fmt: skip
    for name, values in settings.items():
        for value in values:
            yield ["train", "embedded/relay", "--output_dir", "run", f"--{name}", value], "", (2,)
    files = (
        "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join(['*a'] * 9)}]\n" for i in range(9)),
        "seed: 1\nseed: 2\n", "1: 2\n", "null: 2\n", "[1]", "", "\t", "extends: nowhere\n", "output_dir: 5\n",
    )  # fmt: skip
    for text in files:
        Path("c.yaml").write_text(text)
        yield ["train", "c.yaml"], "", (2,)


def evaluations() -> Iterator[Try]:
    common = ["evaluate", "--suite", "tiles", "--limit", 1]
    methods = ("router:p=nan", "router:p=inf", "cascade:share=-1", "plan:n=-1", "plan:n=0", "citer:n=-3",
               "entropy:n=1e9", "entropy:threshold=nan", "entropy:threshold=-1", "speculative:draft=0", "relay:n=-1",
               "a/b", "relay:student=", "student student")  # fmt: skip
    for text in methods:
        yield [*common, "--out", "ev", "--methods", text], "", (2,)
    yield [*common, "--out", "ev", "--teacher", "http://me:PASSWORD@127.0.0.1:9/v1"], "", (2,)
    head = b"method,student,sample,id,correct,tokens,teacher_tokens\n"
    for name in ("table.csv", "config.json"):
        for content in (b"", bytes(range(256)), b"<html>", b"a,b\n1,2\n", head + b"a,b,x,y,z,w,v\n"):
            Path("damaged").mkdir(exist_ok=True)
            for file, whole in (("table.csv", head), ("config.json", b"{}")):
                Path("damaged", file).write_bytes(content if file == name else whole)
            yield [*common, "--out", "damaged", "--methods", "student"], "damaged", (2,)
            if name == "table.csv":
                yield ["report", "damaged"], name, (2,)
                yield ["scorecard", "damaged"], name, (2,)


def foreign() -> Iterator[Try]:
    """Files and folders of somebody else: refused, and as they were afterwards (``main`` looks)."""
    for content in (b"x", b"x" * 1000, b"\0" * 50, b'{"question":"2+2?","answer":"4"}'):
        for command in ("decode", "filter"):
            Path("mine.jsonl").write_bytes(content)
            yield [command, "--suite", "tiles", "--limit", 1, "--out", "mine.jsonl"], "mine.jsonl", (2,)
        Path("empty.jsonl").touch()
        yield ["judge", "empty.jsonl", "--server", DEAD, "--max-requests", 1, "--cache", "mine.jsonl"], "jsonl", (2,)
    Path("mine").mkdir()
    Path("mine", "thesis.tex").write_text("x")
    suite = ["--suite", "tiles", "--limit", 2]
    for words in (["warmup", *suite], ["train", "embedded/relay"], ["zoo", "train", "student"], ["evaluate", *suite]):
        yield [*words, "--output_dir" if words[0] == "train" else "--out", "mine"], "mine", (2,)


def sweeps() -> Iterator[Try]:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("n: int = 1\nname: str = ''\nvalues = []")])
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, "n.ipynb")
    texts = [
        "grid: {n: [1, 2]}\nseeds: 1000000000\n",
        "seeds: 3\n",
        "zips: [3]\n",
        "plane: [1, 2]\n",
        "grid: {n: null}\n",
    ]
    texts += ["grid: {values: [*a, *a]}\n", "grid: 5\n", "5\n", "", "notebook: other.ipynb\n"]
    texts += [
        f"grid: {{{name}: [{value}, b]}}\n"
        for key in KEYS
        for name, value in (("name", f"'{key}'"), ("values", f"['{key}']"))
    ]
    for text in texts:
        Path("s.yaml").write_text(f"notebook: n.ipynb\n{text}")
        yield ["sweep", "s.yaml", "--out", "sweep", "--dry-run"], "", (2,) if text else (0, 2)


def run(words: list[Any]) -> tuple[int | str | None, str]:
    """The exit code and what was printed."""
    sys.argv, printed = ["relaylab", *map(str, words)], io.StringIO()
    cli.console.file = printed
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        try:
            cli.main()
        except SystemExit as error:
            return error.code, printed.getvalue()
        except BaseException as error:
            return f"{type(error).__name__}: {error}", printed.getvalue()
    return 0, printed.getvalue()


def main() -> None:
    warnings.simplefilter("ignore")
    total = 0
    with tempfile.TemporaryDirectory(prefix="relaylab-broken-") as home:
        os.chdir(home)
        for kind in (traces, trainings, evaluations, foreign, sweeps):
            tries = bad = 0
            for words, named, codes in kind():
                own = {p: p.read_bytes() for p in (Path("mine.jsonl"), Path("mine/thesis.tex")) if p.exists()}
                code, text = run(words)
                tries += 1
                lost = [str(p) for p, content in own.items() if not p.exists() or p.read_bytes() != content]
                if code not in codes or (code != 0 and named not in text) or "a fault of relaylab" in text or lost:
                    bad += 1
                    print("BAD", code, *words, lost or "", text.strip()[-200:])
            total += bad
            print(f"{kind.__name__}: {tries} tries, {bad} bad", flush=True)
        made = [name for name in ("run", "sweep") if Path(name).exists()]
        leaked = [str(p) for p in Path().rglob("*") if p.is_file() and b"PASSWORD" in p.read_bytes()]
        print(f"folders made by refused commands: {made or 'none'}; files that hold the password: {leaked or 'none'}")
        os.chdir("/")
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
