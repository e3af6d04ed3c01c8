"""Lessons 16 and 17: Qwen3 on one GPU."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from lesson.checks.function import NotYet, exercise, number
from relaylab.memory import GB, PROMPT, QWEN3, Shape, shipped, total

Config = Mapping[str, int]  # the names of a config.json

RECIPE, CARD, STEP = "qwen3/06b-24gb-4bit", 0.95 * 24 * GB, 128  # 5 % of a card go to its driver and to fragments


def _configs(rng: random.Random) -> Iterator[tuple[dict]]:
    for shape in QWEN3.values():
        yield (asdict(shape),)
    for _ in range(20):
        kv = rng.choice((1, 2, 4))
        yield (
            asdict(
                Shape(
                    hidden_size=32 * rng.randint(1, 40),
                    num_hidden_layers=rng.randint(2, 40),
                    num_attention_heads=kv * rng.choice((1, 2, 3)),
                    num_key_value_heads=kv,
                    head_dim=rng.choice((16, 64, 128)),
                    intermediate_size=96 * rng.randint(1, 40),
                    vocab_size=1000,
                    tie_word_embeddings=True,
                )
            ),
        )


def _cache(config: Config, **other: int) -> int:
    c = dict(config) | other
    return 2 * c["num_hidden_layers"] * c["num_key_value_heads"] * c["head_dim"] * 2


def _lora(config: Config, rank: int, **other: int) -> int:
    return Shape(**{**config, **other}).lora(rank)


def _matrices(config: Config) -> dict[str, tuple[int, int]]:
    """(in, out) of the matrices of one layer, by name."""
    h, m = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[f"num_{who}_heads"] * config["head_dim"] for who in ("attention", "key_value"))
    return {
        "q": (h, q), "k": (h, kv), "v": (h, kv), "o": (q, h), "gate": (h, m), "up": (h, m), "down": (m, h)
    }  # fmt: skip


def _of(config: Config, rank: int, names: str = "q k v o gate up down", *, ins: int = 1, outs: int = 1) -> int:
    """Parameters of an adapter on some matrices, or with one of its two factors only."""
    matrices = _matrices(config)
    return rank * config["num_hidden_layers"] * sum(ins * matrices[n][0] + outs * matrices[n][1] for n in names.split())


def _narrow(config: Config) -> dict[str, int]:
    """What a head has in models whose heads together are as wide as a hidden state."""
    return {"head_dim": config["hidden_size"] // config["num_attention_heads"]}


@number
def longest_answer(tokens: int) -> bool:
    """The longest max_tokens, in steps of 128, with which the recipe stays below 95 % of 24 GB."""
    if type(tokens) is not int or tokens < STEP or tokens % STEP:
        raise NotYet(f"give a multiple of {STEP} tokens, not {tokens!r}")
    run = shipped()[RECIPE]
    taken, more = (total(replace(run, tokens=PROMPT + n).terms) for n in (tokens, tokens + STEP))
    if taken >= CARD:
        raise NotYet(f"too long: with {tokens:,} it takes {taken / GB:.1f} GB, and {CARD / GB:.1f} are to be had")
    if more < CARD:
        raise NotYet(f"you can go further: with {tokens + STEP:,} it takes {more / GB:.1f} GB of {CARD / GB:.1f}")
    return True


def _told(config: Config, *names: str) -> str:
    return ", ".join(f"{name} = {config[name]}" for name in names)


@exercise(inputs=_configs, show=lambda config: _told(config, "num_hidden_layers", "num_key_value_heads", "head_dim"))
def cache_bytes(config):
    """Bytes of keys and values a token, in bf16."""
    return _cache(config)


@cache_bytes.mistake("Query heads share keys and values: what is kept has num_key_value_heads.")
def query_heads(c):
    return _cache(c, num_key_value_heads=c["num_attention_heads"])


@cache_bytes.mistake("Keys and values, of 2 bytes a number: is one of these factors missing?")
def one_factor_missing(c):
    return _cache(c) // 2


@cache_bytes.mistake("bf16 has 2 bytes a number.")
def four_bytes(c):
    return 2 * _cache(c)


@cache_bytes.mistake(
    "A head has head_dim numbers; that is not hidden_size / num_attention_heads in each of these models."
)
def narrow_heads(c):
    return _cache(c, **_narrow(c))


@cache_bytes.mistake("A layer keeps num_key_value_heads x head_dim numbers, not hidden_size.")
def hidden_size_kept(c):
    return 4 * c["num_hidden_layers"] * c["hidden_size"]


@cache_bytes.mistake("Every layer has a cache of its own.")
def one_layer(c):
    return _cache(c, num_hidden_layers=1)


@exercise(
    inputs=lambda rng: ((c, rng.choice((4, 8, 16))) for (c,) in _configs(rng)),
    show=lambda config, rank: f"rank = {rank}, " + _told(config, *list(config)[:6]),
)
def lora_parameters(config, rank):
    """Parameters of an adapter on all seven matrices of each layer."""
    return _lora(config, rank)


@lora_parameters.mistake("That is what the matrices have; two thin ones beside each have rank x (in + out).")
def whole_matrices(c, r):
    return c["num_hidden_layers"] * sum((a * b for a, b in _matrices(c).values()))


@lora_parameters.mistake("Seven matrices: q, k, v, o and gate, up, down.")
def attention_only(c, r):
    return _of(c, r, "q k v o")


@lora_parameters.mistake("An adapter is two matrices: in x rank, and rank x out.")
def first_factor_only(c, r):
    return _of(c, r, outs=0)


@lora_parameters.mistake("In x rank, and rank x out: where is the first of the two?")
def second_factor_only(c, r):
    return _of(c, r, ins=0)


@lora_parameters.mistake("q puts out num_attention_heads x head_dim numbers, which need not be hidden_size.")
def narrow_query(c, r):
    return _lora(c, r, **_narrow(c))


@lora_parameters.mistake("k and v put out num_key_value_heads x head_dim numbers, fewer than q.")
def key_heads_as_query_heads(c, r):
    return _lora(c, r, num_key_value_heads=c["num_attention_heads"])


@lora_parameters.mistake("That is one layer's.")
def one_layer_adapted(c, r):
    return _lora(c, r, num_hidden_layers=1)


@cache_bytes.mistake("Every layer has a cache: num_hidden_layers, not num_attention_heads.")
def heads_for_layers(c):
    return _cache(c, num_hidden_layers=c["num_attention_heads"])


@cache_bytes.mistake("Keys and values have num_key_value_heads x head_dim numbers each, not hidden_size.")
def hidden_size_once(c):
    return 2 * c["num_hidden_layers"] * c["hidden_size"]


@cache_bytes.mistake("Keys and values, of 2 bytes a number: both factors are missing.")
def both_factors_missing(c):
    return _cache(c) // 4


@lora_parameters.mistake("q, k, v and o are not square: their heads are num_..._heads x head_dim wide.")
def square_attention(c, r):
    return r * c["num_hidden_layers"] * (8 * c["hidden_size"] + 3 * (c["hidden_size"] + c["intermediate_size"]))


@lora_parameters.mistake("Seven matrices: gate and up are two.")
def one_gate(c, r):
    return _of(c, r, "q k v o up down")


@lora_parameters.mistake("Each thin matrix has the rank as its other side.")
def no_rank(c, r):
    return _of(c, 1)


@lora_parameters.mistake("Seven matrices: o of attention and the three of the MLP, too.")
def without_o(c, r):
    return _of(c, r, "q k v")
