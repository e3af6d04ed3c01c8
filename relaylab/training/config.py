"""``RelayGRPOConfig``: the settings of a training run. Python, YAML and the command line are one thing.

The settings are those of TRL's GRPOConfig under TRL's own names, and those of the relay. What TRL would take and a
relay run cannot honour is refused with the name of the setting that does it.
"""

from __future__ import annotations

import os
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental, and trl is pinned for it

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl.scripts.utils import TrlParser
from trl.trainer.grpo_config import GRPOConfig

from relaylab.defaults import CAPS
from relaylab.relay.config import CallEnd, OnFailure, RelayConfig
from relaylab.settings import nearest, read_yaml
from relaylab.tasks.suites import ALL_SUITES, SUITES
from relaylab.training import rewards
from relaylab.training.configs import read_config
from relaylab.training.rewards import Ratio

NESTED = ("teacher_options", "lora", "teacher_size")  # on a command line they are YAML
SHAPE = ("ratio", "bonus", "penalty", "exploration_cap", "rho_weight")  # of the reward ``difficulty_aware``
COST = ("cost_weight", "teacher_size")  # of ``cost_aware``

# The settings of GRPOConfig that a relay run honours, beginnings of names included. All others stay at their defaults.
HONOURED = (
    "output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation",
    "num_iterations", "num_generations", "learning_rate", "lr_scheduler_", "warmup_steps", "optim", "weight_decay",
    "adam_", "max_grad_norm", "average_tokens_across_devices", "bf16", "tf32", "activation_checkpointing", "seed",
    "data_seed", "use_cpu", "temperature", "max_completion_length", "beta", "epsilon", "delta", "sapo_", "vespo_",
    "importance_sampling_level", "scale_rewards", "loss_type", "mask_truncated_completions", "sync_ref_model",
    "ref_model_", "top_entropy_quantile", "entropy_", "use_adaptive_entropy", "use_bias_correction_kl", "save_steps",
    "disable_tqdm", "report_to", "run_name", "project", "ddp_", "off_policy_mask_threshold", "pad_to_multiple_of",
    "torch_empty_cache_steps", "log_level", "disable_dropout", "debug", "local_rank", "include_num_",
)  # fmt: skip
INSTEAD = {
    "rollouts follow temperature alone": ("top_p", "top_k", "min_p", "repetition_penalty", "generation_"),
    "relaylab's own engine writes rollouts": ("use_vllm", "vllm_", "use_transformers_", "transformers_"),
    "a run resumes by itself; see save_steps": ("save_", "resume_", "load_best_", "ignore_data_"),
    "upload the student's folder with `hf upload`": ("hub_", "push_to_hub"),
    "measure with `relaylab evaluate`": ("eval_", "do_eval", "per_device_eval_"),
    "metrics.jsonl has every step; see keep_rollouts": ("logging_", "log_completions"),
    "use max_steps": ("num_train_epochs",),
    "use steps_per_generation": ("generation_batch_size",),
    "use activation_checkpointing": ("gradient_checkpointing",),
    "use dtype and use_cpu": ("model_init_kwargs", "fp16"),
    "the student's chat template is used as it is": ("chat_template_kwargs",),
}

# Bounds of numbers; all others are at least 0 and at most 1e9.
POSITIVE = (
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations",
    "save_steps", "max_completion_length", "num_problems", "decode_batch_size", "fixed_call_tokens", "filter_samples",
    "filter_max_tokens", "filter_batch_size",
)  # fmt: skip
AT_LEAST = dict.fromkeys(POSITIVE, 1) | {"num_generations": 2, "temperature": 0.01, "penalty": -100, "local_rank": -1}
AT_MOST = {
    "max_steps": 10**7, "num_problems": 10**6, "keep_rollouts": 10**7, "seed": 2**32 - 1, "temperature": 100,
    "penalty": 100, "learning_rate": 10, "filter_threshold": 1, "max_excluded": 1, "exploration_cap": 1,
}  # fmt: skip
# What decides nothing of a run. Teachers and problems are recorded as what these settings led to.
UNBOUND = {
    "output_dir", "disable_tqdm", "use_cpu", "report_to", "run_name", "project", "debug", "max_excluded", "teacher",
    "include_num_input_tokens_seen", "teacher_options", "suites", "num_problems", "data", "data_seed", "question_field",
    "filter_batch_size", "answer_field",
}  # fmt: skip


@dataclass
class RelayGRPOConfig(GRPOConfig):
    """The settings of a training run. Those of TRL that are not named here have TRL's defaults.

    A step is an optimiser step. A batch of rollouts is ``per_device_train_batch_size * steps_per_generation`` of each
    process, and lasts ``num_iterations * steps_per_generation / gradient_accumulation_steps`` steps.

    Args:
        student: a name or folder. An adapter is trained further; a model gets a new one, unless ``full``.
        teacher: names, folders, URLs or ``none``. The groups of a batch take several in turn. With names in one text,
            ``"small=student large=teacher"``, the student chooses: ``<call to=small>n</call>``.
        teacher_options: of ``load_teacher``, such as ``temperature``, ``tokenizer``, ``quantize``.
        suites: the embedded suites that the problems are drawn from, in turn, by ``data_seed``.
        num_problems: of the suites (900 by default) or of the file (all by default).
        data: a file of problems, instead of the suites.
        question_field: the column of ``data`` with the question; by default the usual names.
        answer_field: the column of ``data`` with the answer.
        prompt_suffix: put after each question.
        filter_threshold: train on what the first teacher (of several names the largest) solves at least so often.
        filter_samples: teacher answers per problem.
        filter_max_tokens: of such an answer.
        filter_batch_size: such answers at a time.
        filter_seed: of the answers. Runs that differ in ``seed`` alone train on the same problems.
        filter_rates: a file that ``relaylab filter`` made, instead of asking the teacher.
        reward: a name in ``rewards.SCHEMES``; ``outcome`` with the teacher ``none`` is plain GRPO.
        ratio: how rho is measured; ``group`` cannot be diluted.
        bonus: of a right answer without help in a solvable group.
        penalty: of a wrong answer without help in a dependent group.
        exploration_cap: the most that a wrong, helped answer of an unsolvable group gets; 1 is the paper's rho, 0 none.
        rho_weight: of rho in the reward of a right, helped answer; the paper has 1.
        cost_weight: of the reward ``cost_aware``: what an answer of the teacher alone costs, in right answers.
        teacher_size: of the same: parameters of the teacher, in those of the student; by name if they have names.
        released_code: train as the authors' released code does, its faults included.
        mask_teacher: keep teacher tokens out of the loss; off only to see what happens.
        credit_calls: a command's tokens get its own advantage, from a fork without the call (``call_credits``).
        max_completion_length: tokens of a rollout in all, commands included.
        max_calls: answered calls per rollout; None is no cap.
        max_call_tokens: teacher tokens that one call may be granted.
        max_teacher_tokens: teacher tokens per rollout.
        fixed_call_tokens: grant every call so many tokens, whatever it asks for.
        call_end: a call ends after its ``tokens``, or with the ``line`` or the ``answer``, whatever it asks for.
        on_failure: of a teacher: ``exclude`` the rollout from its group, ``carry_on`` alone, or ``raise``.
        max_excluded: stop, resumable, when a larger share of a batch was excluded.
        decode_batch_size: rollouts decoded together.
        keep_rollouts: keep the traces of every so many batches of rollouts; 0 keeps none.
        lora: settings of PEFT's LoraConfig for a new adapter, over ``policy_model.LORA``.
        full: train all weights.
        dtype: of the student's weights; the checkpoint's on a GPU, float32 on a CPU.

    Raises:
        ValueError: for a setting of a wrong type or size, and for one that a relay run cannot honour.

    >>> RelayGRPOConfig(student="warmup", output_dir="runs/x", learning_rate="1e-3", max_calls=2).learning_rate
    0.001
    """

    output_dir: str = ""
    max_steps: int = 200
    per_device_train_batch_size: int = 128
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.01
    activation_checkpointing: bool = False
    seed: int = 0
    data_seed: int = 1
    save_steps: int = 50
    beta: float = 0.01
    loss_type: str = "grpo"
    use_bias_correction_kl: bool = False  # plain k3, as in the paper
    debug: str = ""  # TRL's annotation would let argparse set None
    student: str = ""
    teacher: list[str] = field(default_factory=lambda: ["teacher"])
    teacher_options: dict[str, Any] | None = None
    suites: list[str] = field(default_factory=lambda: list(SUITES))
    num_problems: int | None = None
    data: str | None = None
    question_field: str = ""
    answer_field: str = ""
    prompt_suffix: str = ""
    filter_threshold: float = 0.0
    filter_samples: int = 10
    filter_max_tokens: int = 160
    filter_batch_size: int = 128
    filter_seed: int = 0
    filter_rates: str | None = None
    reward: str = "difficulty_aware"
    ratio: Ratio = "group"
    bonus: float = 1.5
    penalty: float = -1.0
    exploration_cap: float = 1.0
    rho_weight: float = 1.0
    cost_weight: float = 0.1
    teacher_size: float | dict[str, float] | str = 10.0  # a text is YAML, as in TRL's settings
    released_code: bool = False
    mask_teacher: bool = True
    credit_calls: bool = False
    num_generations: int = 8
    max_completion_length: int = 160
    max_calls: int | None = None
    max_call_tokens: int | None = None
    max_teacher_tokens: int | None = None
    fixed_call_tokens: int | None = None
    call_end: CallEnd = "tokens"
    on_failure: OnFailure = "exclude"
    max_excluded: float = 0.5
    decode_batch_size: int = 128
    keep_rollouts: int = 10
    lora: dict[str, Any] | None = None
    full: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        """Check the settings. TRL's own checks come with ``trl_config``."""
        hints = get_type_hints(type(self))
        for setting in fields(self):
            value, default = getattr(self, setting.name), _default(setting)
            if value == default and type(value) is type(default):
                continue
            setattr(self, setting.name, value := _typed(setting.name, value, hints[setting.name]))
            if value != default:
                _honoured(setting.name)
            for number in value.values() if setting.name == "teacher_size" and isinstance(value, dict) else [value]:
                _bounded(setting.name, number)
        if missing := [name for name in ("student", "output_dir") if not getattr(self, name)]:
            raise ValueError(f"a training run needs {missing[0]}; on the command line: --{missing[0]} ...")
        self._check_batches()
        self._check_reward()
        if unknown := set(self.suites) - set(ALL_SUITES):
            raise ValueError(f"unknown suites {sorted(unknown)}; there are {', '.join(ALL_SUITES)}")

    @property
    def bound(self) -> dict[str, Any]:
        """The settings that decide a run; a folder is bound to them."""
        names = {f.name for f in fields(self) if getattr(self, f.name) != _default(f)} | {*HONOURED, *OWN}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in names - UNBOUND}

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps on one batch of rollouts."""
        return self._micro_batches * self.num_iterations // self.gradient_accumulation_steps

    @property
    def _micro_batches(self) -> int:
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def prompts_per_batch(self) -> int:
        """Prompts of a batch of rollouts in one process."""
        return self.per_device_train_batch_size * self._micro_batches // self.num_generations

    @property
    def relay(self) -> RelayConfig:
        """The caps of a rollout; a student that is trained with them is decoded with them."""
        return RelayConfig(max_tokens=self.max_completion_length, **{name: getattr(self, name) for name in CAPS})

    @property
    def reward_options(self) -> dict[str, Any]:
        """Keywords of ``rewards.score``."""
        if self.released_code:
            return {"scheme": self.reward, "released_code": True}
        names = {"outcome": (), "difficulty_aware": SHAPE, "cost_aware": COST}.get(self.reward, ("ratio",))
        return {"scheme": self.reward} | {name: getattr(self, name) for name in names}

    def trl_config(self, checkpoints: Path, *, bf16: bool) -> GRPOConfig:
        """What TRL's trainer gets. ``bf16``: of the student's weights, for a run that does not set it."""
        settings = {f.name: getattr(self, f.name) for f in fields(GRPOConfig) if f.init}
        settings |= {
            "output_dir": str(checkpoints),
            "bf16": bf16 if self.bf16 is None else self.bf16,  # float32 weights would fill caches of another type
            "data_seed": None,  # the order of prompts is drawn beforehand
            "shuffle_dataset": False,
            "logging_steps": 1,
            "save_total_limit": 2,
            "disable_tqdm": True,
            "use_cpu": self.use_cpu or not torch.cuda.is_available(),
        }
        return GRPOConfig(**settings)

    def _check_batches(self) -> None:
        accumulate, rollouts = self.gradient_accumulation_steps, self.per_device_train_batch_size * self._micro_batches
        for name, value, of, divisor in (
            ("steps_per_generation", self._micro_batches, "gradient_accumulation_steps", accumulate),
            ("per_device_train_batch_size x steps_per_generation", rollouts, "num_generations", self.num_generations),
            ("max_steps", self.max_steps, "the steps on a batch of rollouts", self.steps_per_batch),
            ("save_steps", self.save_steps, "the steps on a batch of rollouts", self.steps_per_batch),
        ):
            if value % divisor:
                raise ValueError(f"{name} is {value}; it must be a multiple of {of}, {divisor}")

    def _check_reward(self) -> None:
        if self.reward not in rewards.SCHEMES:
            raise ValueError(f"no reward {self.reward!r}; there are {', '.join(rewards.SCHEMES)}")
        if self.released_code and (self.reward != "difficulty_aware" or self.credit_calls):
            raise ValueError("released_code has a reward of its own, and no command to credit; leave the others out")
        for name in sorted({*SHAPE, *COST} - self.reward_options.keys()):
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} does nothing for this reward; leave it out")


OWN = tuple(RelayGRPOConfig.__annotations__)  # the relay's own settings


def make_config(config: RelayGRPOConfig | str | Path | None = None, /, **settings: Any) -> RelayGRPOConfig:
    """The settings of a run from a config, a YAML file or the name of a shipped run; keywords win over it.

    Raises:
        ValueError: for an unknown setting, with the nearest one, and for a value that cannot be.

    >>> make_config("embedded/relay", output_dir="runs/x", max_steps=3).max_calls
    2
    """
    if isinstance(config, RelayGRPOConfig):
        settings = {f.name: getattr(config, f.name) for f in fields(config) if f.init} | settings
    elif config is not None:
        settings = read_config(config) | settings
    _check_names(settings)
    return RelayGRPOConfig(**settings)


def parse_config(name: str | Path, args: Sequence[str] = ()) -> RelayGRPOConfig:
    """The settings of a run as a command line has them: a file or name, and ``--max_steps 3`` over it.

    Args:
        name: a YAML file, or the name of a shipped run.
        args: TRL's way of writing settings; ``null`` sets none, and a mapping is written as YAML.

    Raises:
        ValueError: as ``make_config``.

    >>> parse_config("embedded/relay", ["--output_dir", "runs/x", "--max_calls", "null"]).max_calls is None
    True
    """
    config_class: Any = RelayGRPOConfig
    parser = _Parser(config_class, allow_abbrev=False, add_help=False)
    for action in parser._actions:
        action.default, action.type = SUPPRESS, _or_none(action.type)  # what is not on the command line is the file's
        if action.dest in NESTED:
            action.nargs, action.type = None, str
    overrides, unknown = parser.parse_known_args(list(args))
    _check_names([part.lstrip("-") for part in unknown])
    return make_config(name, **vars(overrides))


class _Parser(TrlParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message)


def _or_none(convert: Any) -> Any:
    def value(text: str) -> Any:
        return None if text == "null" else convert(text) if convert else text

    value.__name__ = getattr(convert, "__name__", "text")
    return value


def _check_names(names: Any) -> None:
    valid_names = [f.name for f in fields(RelayGRPOConfig) if f.init]
    for name in names:
        if name not in valid_names:
            hint = nearest(name, valid_names)
            hint = hint if hint.startswith("did") else f"the relay's own are {', '.join(OWN)}"
            raise ValueError(f"unknown setting {name!r}; {hint}")


def _default(setting: Field) -> Any:
    return setting.default_factory() if setting.default_factory is not MISSING else setting.default


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as the type of its setting, as YAML and argparse give it: 1e-3 and "1e-3" are the same number."""
    if isinstance(value, str) and name in NESTED:
        if isinstance(value := read_yaml(value, name), str):
            raise ValueError(f"{name} is {value!r}; write a mapping as YAML, '{{name: value}}'")
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, str) and get_origin(hint) is list:
        value = [value]
    try:
        if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
            raise ValueError(f"{name} is {value}; it is no switch")
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name} is {value!r}: {error.errors()[0]['msg']}") from None


def _honoured(name: str) -> None:
    refused = {start: reason for reason, starts in INSTEAD.items() for start in starts if name.startswith(start)}
    if name in (*HONOURED, *OWN) or (name.startswith(HONOURED) and name not in refused):
        return
    reason = refused[max(refused, key=len)] if refused else "leave it out"
    raise ValueError(f"{name} does nothing in a relay run: {reason}")


def _bounded(name: str, value: Any) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = AT_LEAST.get(name, 0), AT_MOST.get(name, 1e9)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be at least {low} and at most {high:g}")
