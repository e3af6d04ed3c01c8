"""The model in training as an engine that decodes: the same weights, without what training hangs on them.

With LoRA it is a merged copy of the base model, brought up to date before each batch of rollouts. An unmerged adapter
costs a quarter of the decoding time, and merging in place would drift the base weights in bfloat16. With full
fine-tuning it is the model itself. Its caches are empty between rollouts, so none is of older weights.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from relaylab.engine.engine import Engine
from relaylab.engine.load import base_of, check_patterns, embedded, fingerprint_weights, load_model, resolve
from relaylab.files import write_json, write_whole
from relaylab.relay.config import RelayConfig

ADAPTER = "default"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.0}
CAPS_FILE = "relay_config.json"  # the caps that a student was trained with; ``load_pair`` reads them
# What ``sync`` copies and PEFT loads again. Every other setting of an adapter stays at PEFT's default.
COPIED = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "task_type", "peft_type",
    "base_model_name_or_path", "inference_mode", "peft_version", "revision", "auto_mapping", "megatron_core",
}  # fmt: skip
INITS = (True, False, "gaussian", "olora", "orthogonal", "pissa")  # others need data, or draw anew when they are loaded


class PolicyModel:
    """``engine`` decodes with the weights that ``model`` had at the last ``sync``.

    Make it before a trainer gets the model: trainers patch the forward pass.

    Raises:
        ValueError: for an adapter whose layers ``sync`` cannot copy.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, name: str = ""):
        self.model = model
        self.layers: list[tuple[Any, torch.nn.Linear]] = []
        target: Any = model
        if isinstance(model, PeftModel):
            _check_layers(model)
            target = _without_adapters(model)
            plain = dict(target.named_modules())
            trained = model.get_base_model().named_modules()
            self.layers = [(m, plain[path]) for path, m in trained if isinstance(m, LoraLayer)]
        self.engine = Engine(target, tokenizer, name=name)
        self._first: torch.Tensor | None = None  # logits before training
        self._equal = not self.layers  # whether the two models were seen to move together
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Take over the weights of the model in training.

        Raises:
            RuntimeError: where the engine is not the model in training afterwards.
        """
        for trained, plain in self.layers:
            base = trained.get_base_layer().weight
            plain.weight.copy_(base.float() + trained.get_delta_weight(ADAPTER).float())
        if not self._equal:
            self._compare()

    def _compare(self) -> None:
        """Once the weights have moved, the engine's logits have to have moved with them."""
        ids = torch.arange(16, device=self.engine.device)[None] % self.engine.model.config.vocab_size
        training = self.model.training
        trained = self.model.eval()(input_ids=ids).logits.float()
        self.model.train(training)
        decoding = self.engine.model(input_ids=ids).logits.float()
        if self._first is None:
            self._first = trained
        error, moved = ((decoding - trained).norm().item(), (trained - self._first).norm().item())
        rounding = trained.norm().item() * (2e-5 if self.engine.dtype == torch.float32 else 5e-2)
        if error > rounding:
            raise RuntimeError(
                f"rollouts would not be of the model in training: logits differ by {error:.3g} (norm) where training "
                f"has moved them by {moved:.3g}; train a plain LoRA adapter, or all weights"
            )
        self._equal = moved > 10 * rounding


def _without_adapters(model: PeftModel) -> PreTrainedModel:
    """A copy of the base model with plain layers where the adapters were; the weights are the base's."""
    base: Any = copy.deepcopy(model.get_base_model())
    for path, module in list(base.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, name = path.rpartition(".")
            setattr(base.get_submodule(parent), name, module.get_base_layer())
    return base.requires_grad_(False)


# What can be trained --------------------------------------------------------------------------------------------------


def check_adapter(config: PeftConfig) -> None:
    """Can ``PolicyModel`` decode with such an adapter, and ``load_model`` load what is saved of it?

    Raises:
        ValueError: names what cannot.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"an adapter of kind {config.peft_type} cannot be trained here; LoRA can")
    plain = LoraConfig()
    for setting in fields(config):
        value = getattr(config, setting.name)
        if setting.name not in COPIED and value != getattr(plain, setting.name):
            raise ValueError(
                f"{setting.name} cannot be trained here: rollouts would be of another model; plain LoRA can"
            )
    if config.lora_dropout:
        raise ValueError("lora_dropout must be 0: rollouts are drawn without it, and the loss has to see the same")
    if config.init_lora_weights not in INITS:
        raise ValueError(f"init_lora_weights {config.init_lora_weights!r} would not be loaded as it was saved")


def _check_layers(model: PeftModel) -> None:
    check_adapter(model.peft_config[ADAPTER])
    base: Any = model.get_base_model()
    embedding = base.get_input_embeddings().weight
    for path, layer in base.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), torch.nn.Linear):
            raise ValueError(f"an adapter on {path} cannot be trained here; on linear layers it can")
        if layer.get_base_layer().weight is embedding:
            raise ValueError(f"{path} is tied to the embedding: an adapter on it would be saved as another model")


def load_trainable(
    name: str | Path,
    *,
    full: bool = False,
    lora: dict[str, Any] | None = None,
    device: str | None = None,
    dtype: Any = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A student to train: with its own adapter, with a new one, or with all weights.

    Args:
        name: a name or folder.
        full: train all weights.
        lora: settings of a new adapter over ``LORA``.
        device: where to; a GPU if there is one.
        dtype: of the weights.

    Raises:
        ValueError: for ``lora`` or ``full`` of a student that brings an adapter, and where ``check_adapter`` does.
    """
    path = Path(resolve(name)) / "adapter_config.json"
    if full and (lora or path.exists()):
        reason = "lora and full exclude each other" if lora else f"{name} is an adapter, and full trains a whole model"
        raise ValueError(f"{reason}; for all weights, merge the adapter and save the model first (load_model merges)")
    if path.exists():
        if lora:
            raise ValueError(f"{name} brings an adapter; lora is for a student without one")
        check_adapter(PeftConfig.from_pretrained(str(path.parent)))
        model, tokenizer = load_model(base_model(name), device=device, dtype=dtype)
        check_patterns(path.parent, model)
        return PeftModel.from_pretrained(model, path.parent, is_trainable=True), tokenizer
    config = None if full else lora_config(lora)
    model, tokenizer = load_model(name, device=device, dtype=dtype)
    return get_peft_model(model, config) if config else model, tokenizer


def lora_config(lora: dict[str, Any] | None) -> LoraConfig:
    """The configuration of a new adapter: ``LORA``, and these settings over it.

    Raises:
        ValueError: for an unknown setting, and for one that rollouts could not follow.

    >>> lora_config({"r": 4}).lora_alpha
    32
    """
    try:
        config = LoraConfig(task_type="CAUSAL_LM", **LORA | (lora or {}))
    except TypeError as error:
        raise ValueError(f"lora: {str(error).removeprefix('LoraConfig.__init__() ')}") from None
    check_adapter(config)
    return config


def base_model(name: str | Path) -> str:
    """The model under a student's adapter, or the student itself; a folder is named by its absolute path."""
    adapter = Path(resolve(name)) / "adapter_config.json"
    if adapter.exists():
        name = base_of(adapter.parent)
    return str(name) if str(name) in embedded() or not Path(name).is_dir() else str(Path(name).resolve())


def save_student(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str | Path,
    folder: Path,
    caps: RelayConfig | None = None,
) -> None:
    """Save what was trained into an empty folder: all weights, or an adapter over the base of the student ``name``.

    An adapter gets a card that says how to load it, and its tokenizer unless its base is an embedded model. ``caps``,
    those that it was trained with, go into ``relay_config.json``.
    """
    if isinstance(model, PeftModel):
        config, base = model.peft_config[ADAPTER], base_model(name)
        config.base_model_name_or_path = base
        model.save_pretrained(str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False)
        write_whole(folder / "README.md", adapter_card(base))
        if base not in embedded():
            tokenizer.save_pretrained(folder)
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        for key in ("target_modules", "exclude_modules"):  # sets, in another order in each process
            if isinstance(settings[key], list):
                settings[key] = sorted(settings[key])
        write_json(folder / "adapter_config.json", settings)
    else:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if caps is not None:
        default = asdict(RelayConfig())
        write_json(folder / CAPS_FILE, {k: v for k, v in asdict(caps).items() if v != default[k]})


def adapter_card(base: str) -> str:
    """What stands beside an adapter over ``base``. PEFT does not know the names of embedded models."""
    known = base in embedded()
    path = f"resolve({json.dumps(base)})" if known else json.dumps(base)
    imported = "from relaylab.engine.load import resolve\n" if known else ""
    card = Path(__file__).with_name("adapter_card.jinja").read_text(encoding="utf-8")
    return Template(card, keep_trailing_newline=True).render(base=base, path=path, imported=imported)


def weights_digest(name: str | Path) -> str | None:
    """What tells a local model from another of the same name, its base counted in. None for other names."""
    return fingerprint_weights(name) if str(name) in embedded() or Path(name).is_dir() else None


def check_apart(out: str | Path, *names: str | Path) -> None:
    """Refuse an output folder that is, or holds, one of these models or its base.

    Raises:
        ValueError: names the model.
    """
    out = Path(out).expanduser().resolve()
    for name in names:
        for model in (resolve(name), resolve(base_model(name))):
            path = Path(model).resolve()
            if path.exists() and (out == path or out in path.parents):
                raise ValueError(f"{out} holds the model {name}, which would be lost; choose another folder")
