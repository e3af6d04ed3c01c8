"""What must hold on a GPU: pytest -m gpu. In float32 tokens are equal; in bfloat16 errors are those of rounding.

The tests of CUDA graphs that need no GPU let "graphs" run their step again instead.
"""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import pytest
import torch
from reference import slow_relay
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from relaylab.engine import cuda_graphs
from relaylab.engine.engine import Engine
from relaylab.engine.load import embedded_tokenizer, load_engine
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import load_teacher
from relaylab.relay.relay import Relay
from relaylab.tasks.suites import SUITES, problem, problems

DEVICE = "cuda"
TOKENIZER = embedded_tokenizer()
SIZES = dict(
    vocab_size=len(TOKENIZER), hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, eos_token_id=TOKENIZER.eos_token_id,
    initializer_range=0.15,
)  # fmt: skip
QUESTIONS = [problem(SUITES[i % len(SUITES)], i).question for i in range(8)]
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
KINDS = pytest.mark.parametrize("kind", ["qwen3", "llama"])


@pytest.fixture
def gpu():
    if not torch.cuda.is_available() and DEVICE == "cuda":
        pytest.skip("there is no CUDA device here")


def random_model(kind: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4})).eval()


def on_gpu(model: PreTrainedModel, dtype: torch.dtype = torch.float32, **options) -> Engine:
    return Engine(copy.deepcopy(model).to(DEVICE, dtype), TOKENIZER, **options)


@torch.no_grad()
def fresh(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].double().cpu()


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours.double().cpu() - reference).norm() / reference.norm())


def some_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(len(TOKENIZER)) for _ in range(count)]


def worked(engine: Engine, seed: int, steps: int = 60):
    """Yield a row's ids and its logits, row by row, while rows are opened, extended, forked, cut back and closed."""
    rng, rows = random.Random(seed), []
    for step in range(steps):
        if len(rows) < 2 or rng.random() < 0.2:
            rows.append(engine.open(some_ids(rng, rng.randint(2, 40))))
        if rng.random() < 0.15:
            row = rng.choice(rows)
            rows.append(engine.open(row.ids[: rng.randint(1, len(row.ids))]))
        if rng.random() < 0.15:
            row = rng.choice(rows)
            engine.crop(row, rng.randint(1, len(row.ids)))
        if len(rows) > 6 or step == 45:
            engine.close(rows.pop(rng.randrange(len(rows))))
        active = rng.sample(rows, rng.randint(1, len(rows))) if step % 10 == 9 else rows
        for row in active:
            row.ids += some_ids(rng, rng.choice([0, 0, 1, 7]) if step % 10 == 0 else 0) or [row.ids[0]]
            if step % 10 and row.pending > 1:  # as after a hand-off: one pass of many tokens, then steps again
                engine.forward([row])
                row.ids += [row.ids[-1]]
        for row, logits in zip(active, engine.forward(active), strict=True):
            yield list(row.ids), logits[-1]
    for row in rows:
        engine.close(row)


@pytest.mark.gpu
@TYPES
@KINDS
def test_rows_equal_fresh_passes(gpu, kind, dtype):
    """In float32 within 1e-4; in bfloat16 no further from the float32 model than the model's own bfloat16 pass."""
    exact = random_model(kind).double().to(DEVICE)
    engine = on_gpu(random_model(kind), dtype)
    ours, theirs = [], []
    for ids, logits in worked(engine, seed=1):
        reference = fresh(exact, ids)
        ours.append(error(logits, reference))
        theirs.append(error(fresh(engine.model, ids), reference))
    bound = 1e-4 if dtype == torch.float32 else 1.5 * max(theirs) + 0.005
    assert max(ours) < bound, (max(ours), max(theirs))
    assert sum(ours) <= 1.3 * sum(theirs) + 1e-5 * len(ours), (sum(ours), sum(theirs))
    assert engine.cache.keys[0].numel() == 0


@pytest.mark.gpu
@TYPES
@KINDS
def test_greedy_rows_equal_generate(gpu, kind, dtype):
    """Token for token; in bfloat16 up to a choice between two logits that rounding may turn around."""
    engine = on_gpu(random_model(kind), dtype)
    engine.model.generation_config.eos_token_id = None
    prompts = [engine.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]
    rows, margins = [engine.open(p) for p in prompts], []
    for _ in range(100):
        logits = engine.forward(rows)[:, -1]
        best = logits.topk(2).values
        margins.append(((best[:, 0] - best[:, 1]) / logits.abs().amax(-1)).tolist())
        for row, token in zip(rows, logits.argmax(-1).tolist()):
            row.ids += [token]
    for i, (row, prompt) in enumerate(zip(rows, prompts)):
        ids = torch.tensor([prompt], device=DEVICE)
        theirs = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=100, do_sample=False)
        first = next((k for k, (a, b) in enumerate(zip(row.ids, theirs[0].tolist())) if a != b), None)
        if first is not None:
            assert dtype == torch.bfloat16
            assert margins[first - len(prompt)][i] < 0.03, (i, first, margins[first - len(prompt)][i])


class Ragged:
    """Calls at places of each row's own."""

    uses_entropy = False

    @staticmethod
    def places(seed: int) -> dict[int, int]:
        return {(seed * 5) % 17: 3, 20 + seed % 7: 1, 34 + seed % 11: 12}

    def __call__(self, moment):
        return self.places(moment.seed).get(moment.position)


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@KINDS
def test_a_relay_equals_the_slow_reference(gpu, kind, temperature):
    student, teacher = on_gpu(random_model(kind, 0)), on_gpu(random_model(kind, 1))

    def runs(engine: Engine):
        return lambda input_ids: engine.model(input_ids=input_ids.to(DEVICE), use_cache=False)

    caps = dict(max_tokens=60, max_call_tokens=9)
    relay = Relay(student, LocalTeacher(teacher), call_rule=Ragged(), record=True, temperature=temperature, **caps)
    for i, trace in enumerate(relay.run(QUESTIONS, seeds=range(10, 10 + len(QUESTIONS)))):
        slow = slow_relay(
            runs(student), runs(teacher), student.tokenizer, trace.prompt_ids, end_ids=student.end_ids, max_tokens=60,
            seed=10 + i, temperature=temperature, call_rule=Ragged.places(10 + i).get, caps=9,
        )  # fmt: skip
        assert (trace.completion_ids, trace.source, trace.stop) == (slow.ids, slow.source, slow.stop)
        assert [(c.start, c.end, c.delivered) for c in trace.answered] == slow.calls
        known = [(a, b) for a, b in zip(trace.logprobs, slow.logprobs, strict=True) if a is not None]
        assert max(abs(a - b) for a, b in known) < 1e-3


@pytest.mark.gpu
@TYPES
def test_a_relay_is_the_same_with_graphs_and_without(gpu, dtype):
    """The embedded pair, rows that come and go; in bfloat16 most rows, since a near tie may fall otherwise."""
    found = []
    for graphs in (True, False):
        student, teacher = (load_engine(name, dtype=dtype, device=DEVICE) for name in ("warmup", "teacher"))
        if not graphs:
            student._graphs = teacher._graphs = None
        asked = [problem(SUITES[i % len(SUITES)], i).question for i in range(48)]
        relay = Relay(student, LocalTeacher(teacher), max_tokens=120, call_rule=Ragged(), batch_size=24)
        found.append([t.completion_ids for t in relay.run(asked)])
    same = sum(a == b for a, b in zip(*found))
    assert same == 48 if dtype == torch.float32 else same >= 36, same


@pytest.mark.gpu
@TYPES
def test_one_step_of_grpo(gpu, dtype, tmp_path):
    from relaylab.training.grpo import train
    from relaylab.training.run_dir import read_metrics

    chosen = [p for s in SUITES[:3] for p in problems(s, 4, split="train")]
    teacher = load_teacher("teacher", dtype=dtype, device=DEVICE)
    out = train(
        student="warmup", output_dir=str(tmp_path / "run"), teachers=[teacher], problems=chosen, max_steps=2,
        num_generations=4, per_device_train_batch_size=8, learning_rate=1e-3, disable_tqdm=True,
        dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 2
    assert metrics["loss"].notna().all()
    assert (metrics["grad_norm"] >= 0).all()
    assert load_engine(out).name == "run"


@pytest.mark.gpu
def test_a_teacher_in_4_bits(gpu, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    random_model("qwen3").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    engine = load_engine(tmp_path, quantize="4bit")
    assert type(engine.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    for ids, logits in worked(engine, seed=2, steps=20):
        assert error(logits, fresh(engine.model, ids)) < 0.03
    trace = Relay(on_gpu(random_model("llama")), LocalTeacher(engine), call_rule=Ragged()).run(QUESTIONS[:2])[0]
    assert trace.answered


# Graphs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@TYPES
def test_graphs_are_captured_and_follow_the_weights(gpu, dtype):
    engine = on_gpu(random_model("qwen3"), dtype)
    plain = Engine(engine.model, TOKENIZER, graphs=False)
    assert plain._graphs is None

    def agree(count: int) -> None:
        rng = random.Random(count)
        pairs = [(engine.open(ids), plain.open(ids)) for ids in (some_ids(rng, 30) for _ in range(count))]
        for _ in range(50):
            ours, theirs = engine.forward([a for a, _ in pairs]), plain.forward([b for _, b in pairs])
            for (a, b), x, y in zip(pairs, ours, theirs):
                assert error(x, y.double().cpu()) < (1e-5 if dtype == torch.float32 else 0.02)
                token = int(y.argmax())
                a.ids += [token]
                b.ids += [token]
        assert len(engine._graphs) > 0
        for a, b in pairs:
            engine.close(a)
            plain.close(b)
        assert len(engine._graphs) == 0

    agree(1)
    agree(9)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(1.1)
    agree(3)
    engine.model.to("cpu").to(DEVICE)  # other addresses
    agree(3)


class Again(SimpleNamespace):
    """Stands for a graph where there is no GPU."""

    def replay(self) -> None:
        self.run()

    def pool(self) -> None:
        return None


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "captured", lambda run, beside: Again(run=run))


def stepping(**options) -> Engine:
    engine = Engine(random_model("qwen3"), TOKENIZER, **options)
    engine._graphs = cuda_graphs.StepGraphs(engine.model, engine._fast, engine.cache)
    return engine


def test_steps_of_rounded_sizes_equal_fresh_passes(without_gpu):
    engine, captured = stepping(), 0
    for ids, logits in worked(engine, seed=3):
        assert error(logits, fresh(engine.model, ids)) < 1e-5
        captured = max(captured, len(engine._graphs))
    assert captured > 0
    assert len(engine._graphs) == 0


def test_graphs_go_where_caches_or_weights_move(without_gpu):
    engine = stepping()
    rows = [engine.open(some_ids(random.Random(i), 20)) for i in range(3)]

    def steps(count: int) -> None:
        for _ in range(count):
            for row in rows:
                row.ids += [row.ids[0]]
            for row, logits in zip(rows, engine.forward(rows), strict=True):
                assert error(logits, fresh(engine.model, row.ids)) < 1e-5

    steps(4)
    assert len(engine._graphs) == 1
    room = engine.cache.columns
    steps(80)
    assert engine.cache.columns > room
    assert len(engine._graphs) > 0
    hook = engine.model.model.layers[0].register_forward_hook(lambda *_: None)
    seen = dict(engine._graphs._graphs)
    rows.append(engine.open(rows[0].ids))  # a new size
    steps(2)
    assert seen == engine._graphs._graphs
    hook.remove()
    weight = engine.model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.clone()
    steps(1)
    assert len(engine._graphs) == 0
    steps(1)
    assert len(engine._graphs) == 1
