"""The teacher in this process: what it runs again (nothing), and how it fails (as an answer)."""

from __future__ import annotations

import pytest
import torch
from test_text import merging_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.engine.token_text import TokenText
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.teachers import Segment, TeacherView, complete

ASK = [{"role": "user", "content": "What is 12+34?"}]


@pytest.fixture
def teacher():
    return LocalTeacher(load_engine("student", device="cpu"))


@pytest.fixture
def greek():
    """A teacher of another vocabulary, in which é is two tokens, and which always writes the first of them."""
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}x{% endfor %}"
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=24,
    )  # fmt: skip
    engine = Engine(Qwen3ForCausalLM(config), tokenizer)
    engine.end_ids = frozenset()
    first, second = (engine.text.bytes.index("é".encode()[k : k + 1]) for k in (0, 1))
    return LocalTeacher(engine), first, second


def saying(monkeypatch, tokens):
    """Whatever the logits, these tokens come, over and over."""
    script = iter(tokens * 100)
    monkeypatch.setattr("relaylab.relay.local_teacher.sample", lambda logits, **_: [next(script) for _ in logits])


def test_nothing_is_run_twice(teacher):
    view = TeacherView(ASK, n=3)
    prompt = len(teacher.engine.prompt_ids(ASK))
    said = complete(teacher, [view])[0]
    assert (said.tokens, said.finish_reason) == (3, "length")
    assert teacher.engine.forwarded == prompt + 2  # its last token is not run yet
    own = teacher.engine.text.encode("12")
    view.segments += [Segment(said.text, said.ids), Segment("12", tuple(own))]
    view.n = 2
    again = complete(teacher, [view])[0]
    assert teacher.engine.forwarded == prompt + 2 + 1 + len(own) + 1
    fresh = TeacherView(ASK, list(view.segments), n=2)
    assert complete(teacher, [fresh])[0].ids == again.ids
    teacher.release([view, fresh])
    assert not teacher.engine.slots


def test_asked_again_without_a_new_segment_it_says_the_same(teacher):
    view = TeacherView(ASK, n=4)
    first, second = (complete(teacher, [view])[0] for _ in range(2))
    assert first.ids == second.ids


def test_whole_characters_are_not_cut(greek, monkeypatch):
    teacher, first, second = greek
    saying(monkeypatch, [first, second])
    cut = complete(teacher, [TeacherView(ASK, n=3)])[0]
    assert (cut.text, cut.ids) == ("é\ufffd", (first, second, first))
    saying(monkeypatch, [first, second])
    whole = complete(teacher, [TeacherView(ASK, n=3, whole_characters=True)])[0]
    assert (whole.text, whole.tokens, whole.finish_reason) == ("é", 2, "length")
    saying(monkeypatch, [first])
    nothing = complete(teacher, [TeacherView(ASK, n=1, whole_characters=True)])[0]
    assert nothing.finish_reason == "error"
    assert "no whole character" in nothing.error


def test_the_text_of_another_tokenizer_is_encoded_once(greek):
    teacher = greek[0]
    complete(teacher, [TeacherView(ASK, [Segment("5=x")], n=1)])
    slot = teacher.engine.slots[0]
    assert TokenText(merging_tokenizer()).encode("5=x") == slot.ids[1:4]


def test_stop_with_no_token(teacher, monkeypatch):
    saying(monkeypatch, [next(iter(teacher.engine.end_ids))])
    said = complete(teacher, [TeacherView(ASK, n=5)])[0]
    assert (said.text, said.finish_reason, said.ids, said.tokens) == ("", "stop", (), 0)


def test_a_full_context_is_an_error_of_its_row_alone(greek):
    teacher = greek[0]
    full, free = complete(teacher, [TeacherView(ASK, [Segment("x" * 24)], n=2), TeacherView(ASK, n=2)])
    assert full.finish_reason == "error"
    assert "context is full" in full.error
    assert (free.finish_reason, free.tokens) == ("length", 2)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: 9")])
@pytest.mark.parametrize("where", ["model", "caches"])
def test_out_of_memory_is_an_answer(teacher, monkeypatch, error, where):
    zeros = torch.zeros

    def fail(*shape, **options):
        if where == "caches" and 0 in shape:
            return zeros(*shape, **options)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*((teacher.engine.model.lm_head, "forward") if where == "model" else (torch, "zeros")), fail)
        said = complete(teacher, [TeacherView(ASK, n=2) for _ in range(3)])
    assert [x.finish_reason for x in said] == ["error"] * 3
    assert all("out of memory" in x.error for x in said)
    assert not teacher.engine.slots
    assert [x.tokens for x in complete(teacher, [TeacherView(ASK, n=2) for _ in range(3)])] == [2] * 3


def test_other_errors_are_not_hidden(teacher, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(Engine, "forward", fail)
    with pytest.raises(RuntimeError, match="shape"):
        complete(teacher, [TeacherView(ASK, n=1)])


def test_a_prompt_that_the_template_refuses_is_an_error_of_its_view_alone(teacher):
    tokenizer = teacher.engine.tokenizer
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    talk = [{"role": "system", "content": "Be short."}, *ASK]
    said = complete(teacher, [TeacherView(talk, n=2), TeacherView(ASK, n=2), TeacherView([], n=2, raw=Segment("", ()))])
    assert [x.finish_reason for x in said] == ["error", "length", "error"]
    assert "no system" in said[0].error
    assert "no token" in said[2].error
    assert len(teacher.engine.slots) == 1
    with pytest.raises(ValueError, match="no system"):
        teacher.score([TeacherView(talk, [Segment("12")])])
