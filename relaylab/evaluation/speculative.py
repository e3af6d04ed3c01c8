"""Speculative decoding of one question by transformers' assisted generation, and the passes that it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from relaylab.engine.engine import Engine
from relaylab.relay.pair import graded, problem_seed
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Trace

if TYPE_CHECKING:
    from relaylab.evaluation.eval_run import EvalRun


def assisted(problem: Problem, student: Engine, teacher: Engine, run: EvalRun, config: dict) -> Trace:
    """The graded answer of the teacher with the student's drafts; ``config`` is the trace's."""
    prompt = teacher.prompt_ids(problem.messages())
    counts = {"teacher_passes": 0, "student_passes": 0}
    hooks = [
        model.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
        for model, name in ((teacher.model, "teacher_passes"), (student.model, "student_passes"))
    ]
    seed, temperature = problem_seed(run.seed, problem.id), run.config.temperature
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    generation = student.model.generation_config
    before = generation.num_assistant_tokens, generation.num_assistant_tokens_schedule
    generation.num_assistant_tokens, generation.num_assistant_tokens_schedule = config["draft"], "constant"
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            ids = torch.tensor([prompt], device=teacher.device)
            model: Any = teacher.model
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), assistant_model=student.model, do_sample=temperature > 0,
                max_new_tokens=run.config.max_tokens, eos_token_id=sorted(teacher.end_ids), **sampling,
            )[0, len(prompt) :].tolist()  # fmt: skip
    finally:
        generation.num_assistant_tokens, generation.num_assistant_tokens_schedule = before
        for hook in hooks:
            hook.remove()
    ended = bool(written) and written[-1] in teacher.end_ids
    pieces = [*teacher.text.pieces(written[:-1]), ""] if ended else teacher.text.pieces(written)
    trace = Trace(
        problem.question, prompt, written, TEACHER * len(written), pieces, stop="teacher_end" if ended else "length",
        seed=seed, temperature=temperature, student=student.name, teacher=config["teacher"],
        config=config | {"counts": counts}, history=[*problem.history] or None,
    )  # fmt: skip
    return graded(trace, problem)
