"""Small models of the Qwen3 architecture with random weights, in folders as from the hub, for lessons 16 and 17."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from relaylab.engine.load import embedded_tokenizer
from relaylab.memory import Shape

SMALL = {
    "student": Shape(64, 2, 4, 2, 32, 192, len(embedded_tokenizer()), tie_word_embeddings=True),
    "teacher": Shape(96, 3, 4, 2, 48, 288, len(embedded_tokenizer()), tie_word_embeddings=False),
}
# Qwen3's chat template ends like this; that of the embedded models gets the same ending.
ENDING = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"


def small_qwen3(folder: Path, *, seed: int = 0) -> dict[str, str]:
    """Make both models; their folders.

    Args:
        folder: Gets a folder per model.
        seed: Of the weights.
    """
    tokenizer = embedded_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).removesuffix("{% endif %}") + ENDING + "{% endif %}"
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, shape in SMALL.items():
        torch.manual_seed(seed)
        config = Qwen3Config(**asdict(shape), **ends, max_position_embeddings=2048)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in SMALL}
