"""A Qwen3 as an ONNX graph with key-value caches, written from its weights.

Written by hand because all embedded models have one architecture. That takes milliseconds where torch's exporter takes
minutes, and the graph has a third of its nodes. Inputs and outputs have Optimum's names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedModel

OPSET = 23  # Attention, RMSNormalization and RotaryEmbedding are operators since then


class _Graph:
    """Nodes and weights of a graph in the making. Every call of ``op`` returns the name of its first output."""

    def __init__(self, state: dict[str, Any]):
        self.state, self.nodes, self.weights = state, list[Any](), dict[str, Any]()

    def op(self, kind: str, *inputs: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        names = outputs or [f"{kind}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def constant(self, name: str, value: Any, dtype: type = np.int64) -> str:
        self.weights[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """A weight of the model; it is taken out of ``state``."""
        value = self.state.pop(name).detach().float().cpu().numpy()
        return self.constant(name, np.ascontiguousarray(value.T if transposed else value), np.float32)


def qwen3_to_onnx(model: PreTrainedModel) -> onnx.ModelProto:
    """A model that reads ``input_ids`` (1, new) after its cache, and returns the ``logits`` (V,) of the next token.

    Args:
        model: a Qwen3, an adapter merged into it.

    Returns:
        The graph, in float32. ``past_key_values.I.key`` and ``.value`` (1, heads, past, head dimension) are inputs;
        ``present.I.key`` and ``.value`` are what the next pass takes.

    Raises:
        ValueError: for another architecture, and for a Qwen3 with parts that this graph does not have.
    """
    config: Any = model.config
    rope = config.rope_parameters or {}
    if config.model_type != "qwen3" or rope.get("rope_type") != "default" or config.hidden_act != "silu":
        raise ValueError(
            f"the page runs Qwen3 models with plain rotary positions, not {config.model_type!r} with {rope}; "
            "choose another model"
        )
    layers, size, heads, shared = (
        config.num_hidden_layers, config.head_dim, config.num_attention_heads, config.num_key_value_heads,
    )  # fmt: skip
    g = _Graph(dict(model.state_dict()))

    # 1) Positions of the new tokens, the rotation of each, and what each may see.
    for name, value in {"zero": 0, "one": 1, "axis_0": [0], "axis_1": [1]}.items():
        g.constant(name, value)
    past = g.op("Squeeze", g.op("Shape", "past_key_values.0.key", start=2, end=3))
    total = g.op("Add", past, g.op("Squeeze", g.op("Shape", "input_ids", start=1, end=2)))
    places = g.op("Unsqueeze", g.op("Range", past, total, "one"), "axis_1")
    seen = g.op("LessOrEqual", g.op("Unsqueeze", g.op("Range", "zero", total, "one"), "axis_0"), places)
    hidden = g.op(
        "Where", seen, g.constant("open", 0, np.float32), g.constant("closed", np.finfo(np.float32).min, np.float32)
    )
    inverse = rope["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float32) / size)
    angles = g.op("Mul", g.op("Cast", places, to=TensorProto.FLOAT), g.constant("inverse", inverse[None], np.float32))
    cos, sin = (g.op("Unsqueeze", g.op(kind, angles), "axis_0") for kind in ("Cos", "Sin"))

    def norm(x: str, name: str) -> str:
        return g.op("RMSNormalization", x, g.weight(name), axis=-1, epsilon=config.rms_norm_eps)

    def linear(x: str, name: str) -> str:
        return g.op("MatMul", x, g.weight(f"{name}.weight", transposed=True))

    def split(x: str, count: int) -> str:
        """(1, T, count * size) as (1, T, count, size)."""
        return g.op("Reshape", x, g.constant(f"heads_{count}", [1, -1, count, size]))

    def turn(x: str) -> str:
        return g.op("Transpose", x, perm=[0, 2, 1, 3])

    # 2) The layers.
    embedding = g.weight("model.embed_tokens.weight")
    x = g.op("Gather", embedding, "input_ids")
    for i in range(layers):
        at, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        y = norm(x, f"model.layers.{i}.input_layernorm.weight")
        query, key = (
            turn(norm(split(linear(y, f"{at}.{p}_proj"), count), f"{at}.{p}_norm.weight"))
            for p, count in (("q", heads), ("k", shared))
        )
        query, key = (g.op("RotaryEmbedding", part, cos, sin) for part in (query, key))
        value = turn(split(linear(y, f"{at}.v_proj"), shared))
        cache = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        outputs = [f"attended_{i}", f"present.{i}.key", f"present.{i}.value"]
        y = turn(g.op("Attention", query, key, value, hidden, *cache, outputs=outputs))
        y = g.op("Reshape", y, g.constant("joined", [1, -1, heads * size]))
        x = g.op("Add", x, linear(y, f"{at}.o_proj"))
        y = norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
        gate = linear(y, f"{mlp}.gate_proj")
        gate = g.op("Mul", gate, g.op("Sigmoid", gate))
        x = g.op("Add", x, linear(g.op("Mul", gate, linear(y, f"{mlp}.up_proj")), f"{mlp}.down_proj"))

    # 3) The logits after the last token.
    x = norm(g.op("Gather", x, g.constant("last", -1), axis=1), "model.norm.weight")
    if config.tie_word_embeddings:
        g.state.pop("lm_head.weight")
        head = g.op("Transpose", embedding, perm=[1, 0])
    else:
        head = g.weight("lm_head.weight", transposed=True)
    g.op("Squeeze", g.op("MatMul", x, head), "axis_0", outputs=["logits"])
    if g.state:
        raise ValueError(f"the page's graph has no place for these weights of the model: {', '.join(g.state)}")

    # 4) What goes in and comes out.
    def info(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def caches(name: str, length: str) -> list[Any]:
        shape = [1, shared, length, size]
        return [info(f"{name}.{i}.{part}", shape) for i in range(layers) for part in ("key", "value")]

    graph = helper.make_graph(
        g.nodes, "qwen3", [info("input_ids", [1, "new"], TensorProto.INT64), *caches("past_key_values", "past")],
        [info("logits", [config.vocab_size]), *caches("present", "total")], list(g.weights.values()),
    )  # fmt: skip
    exported = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    onnx.checker.check_model(exported, full_check=True)
    return exported
