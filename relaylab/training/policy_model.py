"""The model in training as an engine that decodes: the same weights, without what training hangs on them.

For LoRA it is a merged copy of the base, brought up to date before each rollout: an unmerged adapter costs a quarter of
the decoding time, and merging in place would drift the base weights in bfloat16. With full fine-tuning it is the model
itself; its caches are empty between rollouts, so that nothing in them is of older weights.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from relaylab.engine.engine import Engine
from relaylab.engine.load import load_model, resolve

ADAPTER = "default"


class PolicyModel:
    """``engine`` decodes with the weights that ``model`` had at the last ``sync``.

    Make it before a trainer gets the model: trainers patch the forward pass.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, name: str = ""):
        self.layers: list[tuple[LoraLayer, torch.nn.Linear]] = []
        target = model
        if isinstance(model, PeftModel):
            target = _without_adapters(model)
            plain = dict(target.named_modules())
            trained = model.get_base_model().named_modules()
            self.layers = [(m, plain[path]) for path, m in trained if isinstance(m, LoraLayer)]
        self.engine = Engine(target, tokenizer, name=name)
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Take over the weights of the model in training."""
        for trained, plain in self.layers:
            base = trained.get_base_layer().weight
            plain.weight.copy_(base.float() + trained.get_delta_weight(ADAPTER).float())


def _without_adapters(model: PeftModel) -> PreTrainedModel:
    """A copy of the base model with plain layers where the adapters were; the weights are the base's."""
    base = copy.deepcopy(model.get_base_model())
    for path, module in list(base.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, name = path.rpartition(".")
            setattr(base.get_submodule(parent), name, module.get_base_layer())
    return base.requires_grad_(False)


# Loading what is trained, and saving it -------------------------------------------------------------------------------

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.0}


def load_trainable(
    name: str | Path,
    *,
    full: bool = False,
    lora: dict[str, Any] | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A student to train: with an adapter, its own or a new one (``lora`` over the defaults ``LORA``), or ``full``.

    Raises ValueError for ``lora`` where the student brings an adapter or all weights are trained, for ``full`` of an
    adapter (the reference is loaded from the student's folder, and that one would be without it), and for dropout: a
    rollout is drawn from the very model that the loss sees.
    """
    path = Path(resolve(name))
    brings = (path / "adapter_config.json").exists()
    if full and (lora or brings):
        told = "lora and full exclude each other" if lora else f"{name} is an adapter, and full trains a whole model"
        raise ValueError(f"{told}; for all weights, merge the adapter and save the model first (load_model merges)")
    if full:
        return load_model(name, device=device, dtype=dtype)
    if not brings:
        model, tokenizer = load_model(name, device=device, dtype=dtype)
        settings = LORA | (lora or {})
        if settings.get("lora_dropout"):
            raise ValueError("lora_dropout must be 0: rollouts are drawn without it, and the loss has to see the same")
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)), tokenizer
    if lora:
        raise ValueError(f"{name} brings an adapter; lora is for a student without one")
    base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
    model, tokenizer = load_model(base, device=device, dtype=dtype)
    return PeftModel.from_pretrained(model, path, is_trainable=True), tokenizer


def save_student(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str | Path, out: Path
) -> None:
    """Save what was trained to ``out``: all weights, or an adapter; its base is the model that ``name`` stands for."""
    shutil.rmtree(out, ignore_errors=True)
    if isinstance(model, PeftModel):
        config, path = model.peft_config[ADAPTER], Path(resolve(name)) / "adapter_config.json"
        config.base_model_name_or_path = (
            json.loads(path.read_text())["base_model_name_or_path"] if path.exists() else str(name)
        )
        model.save_pretrained(out, selected_adapters=[ADAPTER], save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)
    else:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
