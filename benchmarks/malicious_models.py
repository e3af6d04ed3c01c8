"""Load models, adapters and checkpoints that were made to do harm: none may run code, each is one line or an answer.

    python benchmarks/malicious_models.py

Each folder is a copy of an embedded model with one thing changed. ``relaylab solve`` loads it in a forked process with
little memory and time; a checkpoint is resumed by ``relaylab train``. Code that runs leaves a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interruptions import start

from relaylab.engine.load import resolve

Change = Callable[[Path], Any]
SECONDS, MEMORY = 30, 6 * 2**30  # of processor time, and of address space
MARK = "it-ran"


class Pickled:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


PICKLE = pickle.dumps(Pickled())
CODE = f"open({MARK!r}, 'w').close()\nclass Evil: pass\nparent = Evil\n"
CLIMB = "{{ cycler.__init__.__globals__.os.system('touch " + MARK + "') }}"


def write(folder: Path, **contents: Any) -> None:
    """Files by name, ``__`` for a dot: bytes, text, or what becomes JSON."""
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def changed(name: str, **fields: Any) -> Change:
    """A JSON file with some fields changed."""

    def change(folder: Path) -> None:
        write(folder, **{name: json.loads((folder / name.replace("__", ".")).read_text()) | fields})

    return change


def files(*gone: str, **contents: Any) -> Change:
    """Some files removed, others written."""

    def change(folder: Path) -> None:
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        write(folder, **contents)

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def header(text: bytes, length: int | None = None) -> Change:
    """Weights with this header, which claims this length."""
    size = struct.pack("<Q", len(text) if length is None else length)
    return files(model__safetensors=size + text + b"\0" * 64)


def linked(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def tensor(**entry: Any) -> bytes:
    return json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | entry}).encode()


ONE = "model.safetensors"
CONFIG = (Path(resolve("student")) / "config.json").read_bytes()
CODE_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
MODELS: dict[str, Change] = {
    "a pickle for safetensors": files(model__safetensors=PICKLE),
    "a pickle alone": files(ONE, pytorch_model__bin=PICKLE),
    "a pickle beside": files(pytorch_model__bin=PICKLE, training_args__bin=PICKLE, optimizer__pt=PICKLE),
    "pickled shards": files(
        ONE, pytorch_model__bin__index__json={"metadata": {}, "weight_map": {"model.norm.weight": "a.bin"}},
        a__bin=PICKLE,
    ),
    "shards of safetensors that are pickles": files(
        ONE, model__safetensors__index__json={"metadata": {}, "weight_map": {"model.norm.weight": "a.bin"}},
        a__bin=PICKLE,
    ),
    "shards outside of the folder": files(
        ONE, model__safetensors__index__json={"metadata": {}, "weight_map": {"model.norm.weight": "../../etc/passwd"}},
    ),
    "pickles of other libraries": files(ONE, tf_model__h5=PICKLE, flax_model__msgpack=PICKLE),
    "a pickled vocabulary": files("tokenizer.json", tokenizer__model=PICKLE),
    "a pickled configuration": files(config__json=PICKLE),
    "pickled caps": files(relay_config__json=PICKLE),
    "a pickled generation configuration": files(generation_config__json=PICKLE),
    "code for the model": both(changed("config__json", auto_map=CODE_MAP), files(evil__py=CODE)),
    "code for an unknown model": both(
        changed("config__json", auto_map=CODE_MAP, model_type="evil", architectures=["Evil"]), files(evil__py=CODE)
    ),
    "code for the tokenizer": both(changed("tokenizer_config__json", auto_map=CODE_MAP), files(evil__py=CODE)),
    "code for an unknown tokenizer": both(
        changed("tokenizer_config__json", auto_map=CODE_MAP, tokenizer_class="Evil"), files(evil__py=CODE)
    ),
    "code of another repository": changed("config__json", auto_map={"AutoModelForCausalLM": "evil/repo--evil.Evil"}),
    "code to generate": files(**{"custom_generate/generate__py": CODE}),
    "a kernel of a hub": changed("config__json", _attn_implementation="evil/kernel:run"),
    "a data type that is code": changed("config__json", dtype=f"__import__('os').system('touch {MARK}')"),
    "an activation that is code": changed("config__json", hidden_act=f"__import__('os').system('touch {MARK}')"),
    "a quantiser": changed("config__json", quantization_config={"quant_method": "evil"}),
    "a quantiser with a pickle": both(
        changed("config__json", quantization_config={"quant_method": "torchao", "quant_type": "evil"}),
        files(ONE, pytorch_model__bin=PICKLE),
    ),
    "a template that climbs": files(chat_template__jinja=CLIMB),
    "a template that climbs by an attribute": files(
        chat_template__jinja=CLIMB.replace("cycler.__init__", "(lipsum | attr('__globals__'))")
    ),
    "a template that climbs by a format": files(chat_template__jinja="{{ '{0.__class__.__mro__}'.format(messages) }}"),
    "a template that includes": files(chat_template__jinja="{% include '/etc/passwd' %}"),
    "a template that raises": files(chat_template__jinja="{{ raise_exception('no\x1b]0;t\x07') }}"),
    "a template of 10 GB": files(chat_template__jinja="{{ 'a' * 10000000000 }}"),
    "a template without end": files(chat_template__jinja="{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4),
    "a template that is none": files(chat_template__jinja="{% for"),
    "a header without end": header(b"{}", 2**62),
    "a header longer than the file": header(tensor(), 2**20),
    "a header that is no JSON": header(b"{" * 100),
    "a nested header": header(b'{"a":' * 100_000),
    "an unknown type of tensor": header(tensor(dtype="EVIL")),
    "offsets outside": header(tensor(data_offsets=[0, 2**40])),
    "negative offsets": header(tensor(data_offsets=[-16, 0])),
    "a shape that overflows": header(tensor(shape=[2**40, 2**40])),
    "a shape unlike the configuration": header(tensor(shape=[4])),
    "weights without end": linked(ONE, "/dev/zero"),
    "weights elsewhere": linked(ONE, "/etc/passwd"),
    "a torn file": lambda f: (f / ONE).write_bytes((f / ONE).read_bytes()[:5000]),
    "no configuration": files(config__json=b""),
    "a nested configuration": files(config__json=b"[" * 100_000),
    "a configuration that is a list": files(config__json=[]),
    "sizes without end": changed("config__json", hidden_size=10**9, intermediate_size=10**9, vocab_size=10**9),
    "layers without end": changed("config__json", num_hidden_layers=10**8, layer_types=None),
    "sizes below zero": changed("config__json", num_attention_heads=-1),
    "a tokenizer that is none": files(tokenizer__json=b"\0" * 100),
    "a tokenizer whose pattern explodes": lambda f: write(f, tokenizer__json=_pattern(f)),
}  # fmt: skip
ADAPTERS: dict[str, Change] = {
    "a pickle alone": files("adapter_model.safetensors", adapter_model__bin=PICKLE),
    "a pickle for safetensors": files(adapter_model__safetensors=PICKLE),
    "a class of another library": both(
        changed("adapter_config__json", auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}),
        files(evil__py=CODE),
    ),
    "a base that is a pickle": both(
        changed("adapter_config__json", base_model_name_or_path="evil-base"),
        lambda f: write(f.parent, **{"evil-base/pytorch_model__bin": PICKLE, "evil-base/config__json": CONFIG}),
    ),
    "a base that is itself": changed("adapter_config__json", base_model_name_or_path="model"),
    "a base at an address": changed("adapter_config__json", base_model_name_or_path="http://127.0.0.1:9/x"),
    "an unknown kind": changed("adapter_config__json", peft_type="EVIL"),
    "layers by a pattern that explodes": changed("adapter_config__json", target_modules="(.*.*)*(.*.*)*(.*.*)*x$"),
    "ranks without end": changed("adapter_config__json", r=10**9),
}  # fmt: skip
CHECKPOINT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.safetensors",
              "trainer_state.json")  # fmt: skip


SOLVE = ["solve", "2+2?", "--student", "model", "--teacher", "none", "--max-tokens", "4"]


def _pattern(folder: Path) -> Any:
    data = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(\\w+\\s?)+$x"}, "behavior": "Isolated", "invert": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, data["pre_tokenizer"]]}
    return data


def tried(words: list[str], home: Path) -> str:
    """What is wrong with what a command did; empty for one line, or an answer."""
    import resource  # main() says where it is missing

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    process, hung = start(words, home), False  # a fork inherits the limit
    resource.setrlimit(resource.RLIMIT_AS, before)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        with contextlib.suppress(Exception):
            times = process.cpu_times()
            if times.user + times.system > SECONDS:
                hung = True
                process.kill()
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
    said = Path(f"{home}.log").read_text(errors="replace")
    ran = [str(p) for p in home.parent.rglob(MARK)]
    if ran:
        return f"IT RAN CODE: {ran}"
    if hung:
        return f"hangs: {SECONDS} s of processor time"
    if code < 0 or code not in (0, 2) or "Traceback" in said or "a fault of relaylab" in said or "\x1b]" in said:
        return f"exit {code}: {said[-300:]}"
    return ""


def main() -> None:
    if not hasattr(os, "fork"):
        raise SystemExit("this system has no limits of memory: load hostile models on Linux or macOS")
    bad = total = ran = 0
    with tempfile.TemporaryDirectory(prefix="relaylab-malicious-") as name:
        top = Path(name)
        sys.path.append("")  # as `python -m relaylab` has it: the folder that it is called in

        def one(title: str, words: list[str], home: Path) -> None:
            nonlocal bad, total, ran
            total += 1
            if wrong := tried(words, home):
                bad, ran = bad + 1, ran + wrong.startswith("IT RAN")
                print(f"BAD {title}: {wrong}", flush=True)

        for kind, source, tries in (("model", "student", MODELS), ("adapter", "relay", ADAPTERS)):
            for number, (title, change) in enumerate(tries.items()):
                home = top / f"{kind}{number}"
                shutil.copytree(resolve(source), home / "model")
                change(home / "model")
                shutil.copytree(home / "model", home, dirs_exist_ok=True, symlinks=True)  # for code beside the caller
                one(f"{kind}: {title}", SOLVE, home)
                shutil.rmtree(home)
        training = ["train", "embedded/relay", "--num_problems", "4", "--filter_threshold", "0", "--save_steps", "2",
                    "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "30",
                    "--use_cpu", "true", "--output_dir", "run", "--max_steps", "4"]  # fmt: skip
        whole = top / "whole"
        whole.mkdir()
        stopped = start(training, whole)
        while not list(whole.glob("run/checkpoints/checkpoint-2/trainer_state.json")) and stopped.is_running():
            time.sleep(0.01)
        stopped.kill()
        os.waitpid(stopped.pid, 0)
        for file in CHECKPOINT:
            home = top / f"checkpoint-{file}"
            shutil.copytree(whole, home)
            for folder in home.glob("run/checkpoints/checkpoint-*"):
                write(folder, **{file.replace(".", "__"): PICKLE})
            one(f"checkpoint: {file}", training, home)
    print(f"{total} tries, {ran} ran code, {bad} bad")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
