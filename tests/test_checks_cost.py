"""The exercises of lessons 14 to 17: solutions by another way than the check's, and numbers with their neighbours."""

from __future__ import annotations

import pytest

from lesson.checks import NotYet, check
from relaylab.memory import QWEN3


def test_a_relays_flops_summed_by_hand():
    def my_flops(trace, student, teacher):
        prompt, source = len(trace.prompt_ids), trace.source
        heard = source[: source.rfind("t") + 1]
        by_teacher = prompt + len(heard) - heard.count("c") if heard else 0
        return 2 * student * (prompt + len(source.rstrip("t"))) + 2 * teacher * by_teacher

    assert check("my_flops")(my_flops) == "my_flops is right."


def test_the_coin_of_the_paper():
    assert check("coin")(lambda student, teacher, accuracy: (accuracy - student) / (teacher - student))
    with pytest.raises(NotYet, match=r"These are points; p .*\nFor 42.5, 54.12 and 49.52 % it gives 7.02, not 0.6041."):
        check("coin")(lambda student, teacher, accuracy: accuracy - student)


def test_the_fewest_calls_that_cost_as_much_as_the_teacher():
    """By hand, for a student of 0.6B; with one of 1.7B, ten calls take 115 % (docs/cost.md)."""

    def share(n, student=0.6):  # the last call is behind n / (n + 1) of what the student writes; commands have 8 tokens
        run = 150 + (1000 - n) * n // (n + 1) + n
        return (student * (150 + 1000 + 8 * n) + 8 * run) / (8 * (150 + 1000))

    assert round(100 * share(10, 1.7)) == 115
    fewest = next(n for n in range(1, 100) if share(n) >= 1)
    assert check("fewest_calls")(fewest) == "fewest_calls is right."
    for wrong, hint in (
        (fewest - 1, "not yet as much"),
        (fewest + 1, "fewer do"),
        (0, "from 1 to 1000"),
        (2.0, "a nu"),
    ):
        with pytest.raises(NotYet, match=hint):
            check("fewest_calls")(wrong)


def test_the_cache_and_the_adapter_of_qwen3():
    def cache_bytes(config):
        return config["num_hidden_layers"] * 2 * 2 * config["num_key_value_heads"] * config["head_dim"]

    def lora_parameters(config, rank):
        h, m, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
        return rank * config["num_hidden_layers"] * (2 * (h + q) + 2 * (h + kv) + 3 * (h + m))

    assert check("cache_bytes")(cache_bytes) == "cache_bytes is right."
    assert check("lora_parameters")(lora_parameters) == "lora_parameters is right."
    with pytest.raises(NotYet, match=r"share keys and values.*\n.*= 128 it gives 229376, not 114688"):
        check("cache_bytes")(lambda c: 4 * c["num_hidden_layers"] * c["num_attention_heads"] * c["head_dim"])


def test_the_longest_answer_on_24_gb():
    """8 places of each model, 1.5 columns a token, from 16.7 GB at 1,536 tokens on."""
    token = 1.5 * (8 * QWEN3["0.6B"].cache + 8 * QWEN3["8B"].cache)
    longest = int(1536 + (22.8e9 - 16.7e9) / token) // 128 * 128
    assert check("longest_answer")(longest) == "longest_answer is right."
    for wrong, hint in ((longest - 128, "go further"), (longest + 128, "too long"), (1000, "a multiple of 128")):
        with pytest.raises(NotYet, match=hint):
            check("longest_answer")(wrong)
