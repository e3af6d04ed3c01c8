"""Names to models: the embedded ones, local directories, hub ids, and LoRA adapters of any of these.

Embedded models are package data and load through the same AutoModelForCausalLM and AutoTokenizer as any other; nothing
past this module knows that they are small. ``manifest.json`` beside them holds checksums and scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, snapshot_download
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from relaylab.call_tag import visible
from relaylab.engine.engine import Engine
from relaylab.engine.supported import end_ids_of
from relaylab.files import read_json
from relaylab.settings import nearest

# PEFT 0.21 and TRL 1.16 ask transformers 5.23 by a name that goes in version 6; a user can do nothing about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

WEIGHTS = Path(__file__).parents[1] / "zoo" / "weights"
MANIFEST = WEIGHTS / "manifest.json"
RELAY_CONFIG = "relay_config.json"  # beside a trained student: the caps that it was trained with
CONFIGS = ("config.json", "adapter_config.json")  # a directory with one of them is a model
SAFE = {"use_safetensors": True, "trust_remote_code": False}
LAYERS = re.compile("n(um)?_(hidden_|decoder_)?layers?")  # as configurations spell the number of layers
# Of a file that a model may lack, on the hub or in a folder.
OPTIONAL = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
PATTERN_SECONDS = 30.0  # for the patterns of an adapter; real ones take milliseconds
# The ways in which PEFT looks for a pattern in the names of modules.
MATCH = r"""
import json, re, sys
texts, names = json.load(sys.stdin)
for text in texts:
    for pattern in (text, rf"(.*\.)?({text})$", rf"(^|.*\.){text}($|\..*)", rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\."):
        try:
            seen = [(re.match(pattern, name), re.fullmatch(pattern, name)) for name in names]
        except Exception:
            pass
"""


def embedded() -> dict[str, Path]:
    """The embedded models by name. Those of another world than ``lifelike`` are named as ``plain/student``."""
    folders = sorted(p.parent for p in WEIGHTS.glob("**/*config.json") if p.name in CONFIGS)
    return {folder.relative_to(WEIGHTS).as_posix(): folder for folder in folders}


def resolve(name: str | Path) -> str:
    """The path or hub id that a name stands for: an embedded name first, then a directory, else a hub id as it is.

    Of an adapter on the hub it is the folder of its files in the hub's cache.
    """
    here = embedded()
    if str(name) in here:
        return str(here[str(name)])
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / c).exists() for c in CONFIGS):
            raise ValueError(f"{path} holds no model: neither {' nor '.join(CONFIGS)} is there")
        return str(path)
    if str(name).count("/") != 1 or str(name).startswith((".", "~", "/")):
        raise ValueError(
            f"no model {str(name)!r}: it is no directory, no hub id of the form owner/name, and none of the embedded "
            f"ones; {nearest(name, here)}"
        )
    _look_for_hub()
    return _hub_adapter(str(name)) or str(name)


@lru_cache(maxsize=256)
def _hub_adapter(name: str) -> str | None:
    """The folder of an adapter on the hub, fetched if it is not in the cache; None for a whole model."""
    if not cached_file(name, "adapter_config.json", **OPTIONAL):
        return None
    return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"])


@lru_cache(maxsize=1)
def _look_for_hub() -> None:
    """Go offline if the hub cannot be reached: its library would try every file for 40 s."""
    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), 10).close()
    except OSError as error:
        constants.HF_HUB_OFFLINE = True
        print(f"{constants.ENDPOINT} cannot be reached ({error}); models come from the cache alone", file=sys.stderr)


def load_model(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | None = None, quantize: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, in evaluation mode; a LoRA adapter comes merged into its base model.

    ``device``: cuda where there is one (under a launcher of several processes, the process's own), else cpu. ``dtype``:
    float32 on a CPU, else the checkpoint's. ``quantize="4bit"`` rounds the layers' matrices to 4 bits while loading
    (bitsandbytes' nf4 with double quantisation, multiplied in bfloat16): for a teacher that would not fit else.

    Raises ValueError for a name that stands for nothing, and for 4 bits without a CUDA device, without bitsandbytes, or
    of an adapter. Remote code is never run and weights are read from safetensors only.
    """
    path = resolve(name)
    _announce(name)
    device = device or _device()
    adapter = (Path(path) / "adapter_config.json").exists()
    options: dict[str, Any] = {"dtype": dtype or (torch.float32 if device == "cpu" else "auto")} | SAFE
    if quantize is not None:
        options |= _four_bit(quantize, dtype or torch.bfloat16, device, adapter=path if adapter else "")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; leave out the device (--device)")
    try:
        model = _merged(path, options) if adapter else _from_files(path, options)
        if quantize is None:  # a model in 4 bits is where it belongs
            model.to(device)
        return model.eval(), load_tokenizer(name)
    except (ValueError, OSError, RuntimeError, ImportError):
        raise
    except Exception as error:  # of any kind, for files that somebody has changed
        raise ValueError(f"{name} holds no model that can be loaded: {type(error).__name__}: {error}") from error


def _merged(path: str, options: dict[str, Any]) -> Any:
    """An adapter, merged into its base model."""
    from peft import PeftModel

    if not (Path(path) / "adapter_model.safetensors").exists():  # PEFT would look for a pickle next
        raise ValueError(f"{path} holds an adapter without adapter_model.safetensors")
    base = _from_files(resolve(base_of(path)), options)
    check_patterns(path, base)
    adapted: Any = PeftModel.from_pretrained(base, path)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise ValueError(f"{path} holds an adapter of type {kind}, which cannot be merged into its base model")
    return adapted.merge_and_unload()


def _announce(name: str | Path) -> None:
    """Say what is being loaded, unless it is embedded: that takes milliseconds, and a line in every cell is noise."""
    if str(name) in embedded():
        return logging.disable_progress_bar()
    logging.enable_progress_bar()
    if "ipykernel" not in sys.modules:  # a notebook would keep the line; it has transformers' bar
        print(f"loading {visible(str(name))}", file=sys.stderr, flush=True)


def _from_files(path: str, options: dict[str, Any]) -> Any:
    """A model from a directory or the hub.

    transformers reads the shards that an index of safetensors names, also if they are pickles. It makes as many layers
    as the configuration asks for, before it looks for their weights.
    """
    if index := cached_file(path, "model.safetensors.index.json", **OPTIONAL):
        tensors = read_json(index).get("weight_map", {})
        if other := next((s for s in tensors.values() if not str(s).endswith(".safetensors")), None):
            raise ValueError(f"{index} names {other!r}, which is no safetensors file")
    elif file := cached_file(path, "model.safetensors", **OPTIONAL):
        with safe_open(file, "pt") as opened:
            tensors = opened.keys()
    else:
        tensors = None  # transformers says what is missing
    config = cached_file(path, "config.json", **OPTIONAL)
    if config and tensors is not None:
        numbers = (n for key, n in _entries(read_json(config)) if LAYERS.fullmatch(key) and isinstance(n, int | float))
        if (layers := max(numbers, default=0)) > len(tensors):
            raise ValueError(f"{config} asks for {layers} layers, and the model's files hold {len(tensors)} tensors")
    return AutoModelForCausalLM.from_pretrained(path, **options)


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The keys and values of a configuration, and of all that it holds; an item of a list has the list's key."""
    yield key, value
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            yield from _entries(item, name)


def check_patterns(adapter: str | Path, model: torch.nn.Module) -> None:
    """Try an adapter's patterns on the names of a model's modules, in a process that can be stopped.

    Args:
        adapter: its folder. All its texts that are no plain names count as patterns, whatever PEFT does with them.
        model: the base model.

    Raises:
        ValueError: where a pattern takes longer than ``PATTERN_SECONDS``. ``re`` itself has no limit.
    """
    file = Path(adapter) / "adapter_config.json"
    texts = {text for entry in _entries(read_json(file)) for text in entry if isinstance(text, str)}
    texts = sorted(text for text in texts if not re.fullmatch(r"[\w./-]*", text))
    if not texts:
        return
    question = json.dumps([texts, [name for name, _ in model.named_modules()]])
    try:
        subprocess.run([sys.executable, "-IS", "-c", MATCH], input=question, text=True, timeout=PATTERN_SECONDS)
    except subprocess.TimeoutExpired:
        words = "matching a pattern in it takes too long; list the modules by their names"
        raise ValueError(f"{file}: {words}: {', '.join(map(repr, texts))[:200]}") from None


def base_of(adapter: str | Path) -> str:
    """The name of an adapter's base model, as its ``adapter_config.json`` has it.

    Raises:
        ValueError: if it names none, or one that is not there.
    """
    file = Path(adapter) / "adapter_config.json"
    config = read_json(file)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file} names no base model; set base_model_name_or_path")
    try:
        resolve(base)
    except ValueError as error:
        raise ValueError(f"the base model that {file} names is not there: {error}") from None
    return base


def _device() -> str:
    """accelerate and torchrun number the processes of a machine; each has the GPU of its number."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def _four_bit(quantize: str, dtype: torch.dtype, device: str, *, adapter: str) -> dict[str, Any]:
    """Options of from_pretrained. Such a model is put where it belongs by its device map: it cannot be moved later."""
    if quantize != "4bit":
        raise ValueError(f"quantize is {quantize!r}; it can be '4bit', or None for the weights as they are")
    if adapter:
        raise ValueError(f"{adapter} is an adapter, which is not merged into 4-bit weights; load it without quantize")
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        where = "there is none" if not torch.cuda.is_available() else f"the model is to go to {device!r}"
        raise ValueError(f"4 bits need a CUDA device, and {where}; leave quantize out, or serve the model elsewhere")
    if find_spec("bitsandbytes") is None:
        raise ValueError("4 bits need bitsandbytes, which is not installed: pip install 'relaylab[quant]'")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return {"dtype": dtype, "quantization_config": config, "device_map": {"": device}}


def load_engine(name: str | Path, **options: Any) -> Engine:
    """An engine over ``load_model(name, **options)``; its name says ``(4bit)`` where that is how it was loaded.

    A folder gives its own name, or that of the run it belongs to where it is a run's ``student``.
    """
    model, tokenizer = load_model(name, **options)
    path, here = Path(name).resolve(), Path(name).is_dir() and str(name) not in embedded()
    called = (path.parent.name if path.name == "student" else path.name) if here else str(name)
    quantize = options.get("quantize")
    engine = Engine(model, tokenizer, name=f"{called} ({quantize})" if quantize else called)
    engine.source = str(name)
    return engine


def embedded_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer that all embedded models share."""
    return load_tokenizer("student")


def checksum(directory: Path) -> str:
    """SHA-256 over a model's weights, configurations and tokenizer."""
    digest = hashlib.sha256()
    names = ("*.safetensors", "*config.json", "tokenizer.json", "chat_template.jinja")
    for file in sorted({f for name in names for f in directory.glob(name)}):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def fingerprint_weights(model: str | Path | torch.nn.Module | Engine) -> str:
    """A digest of a model's weights: two models of one name differ in it. An adapter's base counts too.

    Args:
        model: a name as for ``load_model``, a model that is loaded already, or its engine.

    Returns:
        16 hexadecimal digits. Files are read once per process unless they change. Behind those of an engine from files
        stands its type of numbers, if it is not float32: its answers are others.
    """
    if isinstance(model, Engine) and model.source and model.dtype != torch.float32:
        return f"{fingerprint_weights(model.source)} {str(model.dtype).removeprefix('torch.')}"
    digest = hashlib.sha256()
    if isinstance(model, Engine):
        model = model.source or model.model
    if isinstance(model, torch.nn.Module):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]
    path = Path(resolve(model))
    if not path.is_dir():  # a hub id: the snapshot in the hub's cache
        files = (cached_file(str(model), c, _raise_exceptions_for_missing_entries=False) for c in CONFIGS)
        path = Path(next(f for f in files if f)).parent
    for file in sorted([*path.glob("*.safetensors"), *(path / c for c in CONFIGS if (path / c).exists())]):
        status = file.stat()
        digest.update(f"{file.name} {_file_digest(str(file), status.st_mtime_ns, status.st_size)}".encode())
    adapter = path / "adapter_config.json"
    if adapter.exists():
        digest.update(fingerprint_weights(base_of(path)).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _file_digest(path: str, modified: int, size: int) -> str:
    """SHA-256 of a file. The hub's cache names large files by it."""
    target = Path(path).resolve().name
    if len(target) == 64 and set(target) <= set("0123456789abcdef"):
        return target
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights; that of its base for an adapter without one."""
    path = resolve(name)
    if (Path(path) / "adapter_config.json").exists() and not (Path(path) / "tokenizer.json").exists():
        path = resolve(base_of(path))
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_end_ids(name: str | Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer of a model, without its weights."""
    path = resolve(name)
    if (Path(path) / "adapter_config.json").exists():
        path = resolve(base_of(path))
    with suppress(OSError):  # it has no generation config
        return end_ids_of(GenerationConfig.from_pretrained(path), tokenizer)
    return end_ids_of(None, tokenizer)


def manifest() -> dict[str, dict[str, Any]]:
    """What is known of the embedded models: ``sha256``, ``parameters``, ``recipe``, ``scores``, how they were made."""
    return read_json(MANIFEST) if MANIFEST.exists() else {}


def changed() -> list[str]:
    """The embedded models whose files are not those of the manifest."""
    known = manifest()
    return [name for name, path in embedded().items() if known.get(name, {}).get("sha256") != checksum(path)]


def relay_defaults(name: str | Path) -> dict[str, Any]:
    """The settings of ``RelayConfig`` that a student was trained with: its ``relay_config.json``; empty without one."""
    file = cached_file(resolve(name), RELAY_CONFIG, **OPTIONAL)
    return read_json(file) if file else {}
