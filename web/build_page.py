"""Build the page in which a relay runs: one folder of static files (docs/web.md).

    python web/build_page.py --out runs/page
    python web/build_page.py --out runs/page --pairs my/student=my/teacher

Needs Node.js with npm. The libraries come from the npm registry, as ``package-lock.json`` pins them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from onnx_model import qwen3_to_onnx
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from relaylab.defaults import TEACHER
from relaylab.engine.load import embedded, load_model, relay_defaults
from relaylab.engine.supported import context_of, end_ids_of
from relaylab.engine.token_text import fingerprint, prompt_text
from relaylab.files import replaced_folder
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import ALL_SUITES, SUITES, problems
from relaylab.views.theme import source
from relaylab.views.widget import STYLE

HERE = Path(__file__).parent
PAIRS = ("relay", "plain/relay", "student=none", "plain/student=none")
PAGES = ("index.html", "page.js", "relay.js", "runtime.js")
VIEWS = ("shared.js", "strip.js", "live.js", "counterfactual_view.js")
# Its name in the package, and in the page. Not every server knows that .mjs is JavaScript.
VENDORED = {
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "ort.js",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers.js",
    "@huggingface/tokenizers/LICENSE": "tokenizers.LICENSE",
}
MARKER = "page.json"  # the page's own list of its pairs; a folder without it is not replaced
QUESTION = "\ue000question\ue001"


def build(out: Path, pairs: list[str], count: int) -> None:
    """Write the page.

    Args:
        out: its folder. A page that was built there before is replaced.
        pairs: ``STUDENT`` with its default teacher, ``STUDENT=TEACHER``, or ``STUDENT=none``; as for ``load_pair``.
        count: problems of each suite.

    Raises:
        ValueError: for models that the page cannot run, and where ``out`` holds something else.
    """
    packages = node_modules()
    with replaced_folder(out, marker=MARKER) as folder:
        # 1) Our own files, and the libraries.
        for name in PAGES:
            shutil.copy(HERE / name, folder / name)
        (folder / "views").mkdir()
        for name in VIEWS:
            (folder / "views" / name).write_text(source(name), encoding="utf-8")
        (folder / "page.css").write_text(f"{STYLE}\n{(HERE / 'page.css').read_text()}", encoding="utf-8")
        (folder / "vendor").mkdir()
        shutil.copy(HERE / "ort.LICENSE", folder / "vendor")  # its npm package has none
        for package, name in VENDORED.items():
            data = (packages / package).read_bytes()
            if name.endswith(".wasm"):
                (folder / "vendor" / f"{name}.gz").write_bytes(pack(data))
            else:
                (folder / "vendor" / name).write_bytes(data)
        # 2) Models, each once, and what the page must know of each pair.
        (folder / "models").mkdir()
        models = _Models(folder)
        listed = [models.pair(*split_pair(pair)) for pair in pairs]
        # 3) Problems.
        suites = [s for s in ALL_SUITES if any(s in pair["suites"] for pair in listed)]
        drawn = {s: [[p.question, p.answer] for p in problems(s, count)] for s in suites}
        (folder / "problems.json.gz").write_bytes(pack(json.dumps(drawn).encode()))
        (folder / MARKER).write_text(json.dumps({"pairs": listed, "tokenizers": models.tokenizers}))


def split_pair(pair: str) -> tuple[str, str]:
    """``STUDENT=TEACHER``, or a student with its default teacher.

    >>> split_pair("relay"), split_pair("student=none")
    (('relay', 'teacher'), ('student', 'none'))
    """
    student, _, teacher = pair.partition("=")
    return student, teacher or TEACHER


def pack(data: bytes) -> bytes:
    """Gzip, the same bytes at every build. The page unpacks it itself, so no server has to compress."""
    return gzip.compress(data, 9, mtime=0)


def node_modules() -> Path:
    """The folder of the npm packages, installed as the lock says.

    Raises:
        ValueError: without npm, and if it fails.
    """
    npm, folder = shutil.which("npm"), HERE / "node_modules"
    if npm is None:
        raise ValueError("the page needs npm to fetch onnxruntime-web: install Node.js 20 or newer")
    lock, installed = HERE / "package-lock.json", folder / ".installed"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"npm ci failed in {HERE}: {done.stderr.strip()[-500:]}")
        installed.write_bytes(lock.read_bytes())
    return folder


class _Models:
    """Writes the models of the pairs, each once."""

    def __init__(self, folder: Path):
        self.folder, self.tokenizers = folder, dict[str, Any]()
        self._written: dict[str, dict[str, Any]] = {}

    def pair(self, student: str, teacher: str) -> dict[str, Any]:
        """What the page knows of a pair.

        Raises:
            ValueError: where the two have different tokenizers.
        """
        first = self._model(student)
        second = None if teacher == "none" else self._model(teacher)
        if second and second["tokenizer"] != first["tokenizer"]:
            raise ValueError(f"{student} and {teacher} have different tokenizers; a pair of the page shares one")
        config = RelayConfig(**relay_defaults(student))
        return {
            "name": student if second is None else f"{student} + {teacher}",
            "student": first,
            "teacher": second,
            "suites": list(SUITES if student in embedded() and "/" not in student else ALL_SUITES),
            "config": {
                "temperature": config.temperature, "maxTokens": config.max_tokens, "maxCalls": config.max_calls,
                "maxCallTokens": config.max_call_tokens, "maxTeacherTokens": config.max_teacher_tokens,
                "fixedCallTokens": config.fixed_call_tokens, "forbidCalls": config.forbid_calls or second is None,
                "callEnd": config.call_end,
            },
        }  # fmt: skip

    def _model(self, name: str) -> dict[str, Any]:
        if name not in self._written:
            model, tokenizer = load_model(name, device="cpu")
            data = pack(qwen3_to_onnx(model).SerializeToString())
            file = f"models/{name.strip('/').replace('/', '-')}-{hashlib.sha256(data).hexdigest()[:8]}.onnx.gz"
            (self.folder / file).write_bytes(data)
            self._written[name] = {
                "name": name,
                "file": file,
                "tokenizer": self._tokenizer(model, tokenizer),
                "context": context_of(model.config),
                "endIds": sorted(end_ids_of(model.generation_config, tokenizer)),
            }
        return self._written[name]

    def _tokenizer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
        """The key of a tokenizer in ``self.tokenizers``.

        Raises:
            ValueError: for one that the page's code does not read as Python does.
        """
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        before, _, after = prompt_text(tokenizer, [{"role": "user", "content": QUESTION}]).partition(QUESTION)
        if state["normalizer"] or state["decoder"]["type"] != "ByteLevel" or not after:
            raise ValueError(
                "the page reads byte-level tokenizers without a normaliser, and templates that hold the question as "
                f"it is; that of {model.name_or_path} is another"
            )
        key = fingerprint(tokenizer)
        special = tokenizer.all_special_tokens
        self.tokenizers[key] = {"json": state, "before": before, "after": after, "special": special}
        return key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/page"), help="folder of the page")
    parser.add_argument(
        "--pairs", nargs="+", default=list(PAIRS), metavar="STUDENT[=TEACHER]",
        help=f"the first is shown first; default: {' '.join(PAIRS)}",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=300, help="problems of each suite")
    args = parser.parse_args()
    try:
        build(args.out, args.pairs, args.count)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB; show it with: python -m http.server --bind 127.0.0.1 -d {args.out}")


if __name__ == "__main__":
    main()
