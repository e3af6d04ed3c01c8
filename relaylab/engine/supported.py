"""Which models the engine can run, and what it must know of them: seen without running anything."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def cache_shape(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Layers, key-value heads and head dimension of a model's cache.

    Raises:
        ValueError: where its attention needs other caches than one key and value a token in every layer, or where the
            tokenizer has more tokens than the model has embeddings.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    other = sorted(set(types or ()) - {"full_attention"})
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if types is None and window is not None and window < config.max_position_embeddings:
        other = [f"sliding_attention (window of {window})"]
    if other or config.is_encoder_decoder:
        raise ValueError(f"{name} has {other or 'encoder'} layers; relaylab keeps caches of full attention only")
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(f"{name} keeps keys and values of different sizes; serve it, and give its URL as the teacher")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{name} does not use transformers' AttentionInterface, through which relaylab's engine works")
    embeddings: Any = model.get_input_embeddings()
    rows, tokens = embeddings.weight.shape[0], max(tokenizer.get_vocab().values()) + 1
    if tokens > rows:
        raise ValueError(
            f"the tokenizer has {tokens} tokens and {name} has embeddings for {rows}; call "
            "model.resize_token_embeddings(len(tokenizer)), or load the model's own tokenizer"
        )
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


def context_of(config: PreTrainedConfig) -> int:
    """The longest sequence in tokens. Longrope models change all positions beyond a switch, so they end there."""
    longest = config.max_position_embeddings
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return longest
    before = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return min(longest, before or longest)


def end_ids_of(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the generation config's and the tokenizer's."""
    named = [generation.eos_token_id if generation else None, tokenizer.eos_token_id]
    return frozenset(i for x in named if x is not None for i in (x if isinstance(x, list) else [x]))
