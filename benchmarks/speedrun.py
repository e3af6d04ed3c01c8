"""The speedrun: wall time on two cores from the untouched student to a relay that closes the gap (docs/speedrun.md).

    python benchmarks/speedrun.py embedded/relay
    python benchmarks/speedrun.py my.yaml --warmup '{max_steps: 800}' --learning_rate 2e-3 --out runs/mine
    python benchmarks/speedrun.py embedded/relay --quick                # a look: minutes, and no record

RUN is a shipped run, or a YAML file of settings as for ``relaylab train``. The student that it begins with is trained
first, and so on down to the untouched student: no other shipped weights are used. Further options are settings of RUN.

Interrupted or killed, the same command goes on where it was. The clock does not stop meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from relaylab.evaluation.evaluate import evaluate, variants
from relaylab.evaluation.stats import summary
from relaylab.files import bind_folder, read_json, write_json
from relaylab.settings import read_yaml
from relaylab.tasks.suites import SUITES, TAUGHT, mixture, problems
from relaylab.training.config import RelayGRPOConfig, make_config, parse_config
from relaylab.training.configs import config_names, read_config
from relaylab.training.grpo import train
from relaylab.training.warmup import warmup
from relaylab.zoo.recipes import WARMUPS

UNTOUCHED, TEACHER = "student", "teacher"
GAP, SHARE, SEEDS = 0.70, 0.05, 3  # at least, at most, at least
HELD_BACK = 2000  # number of the first held-back problem of each suite, which no other benchmark uses
# A look is the same in small.
QUICK_WARMUP = {"num_problems": 48, "max_steps": 4}
QUICK_GRPO = {"num_problems": 22, "max_steps": 4, "per_device_train_batch_size": 32}


class Clock(TrainerCallback):
    """When each part of a run ended. The times are in a file, and the first one of a part stays."""

    def __init__(self, path: Path):
        self.path, self.ends = path, read_json(path) if path.exists() else {}
        self.end("start")

    def end(self, part: str) -> None:
        self.ends.setdefault(part, time.time())
        write_json(self.path, self.ends)

    def on_train_begin(self, args, state, control, **_):
        self.end(f"filter {Path(args.output_dir).parent.name}")  # its output is OUT/checkpoints

    @property
    def seconds(self) -> dict[str, float]:
        """Of each part."""
        ends = list(self.ends.values())
        return {part: round(end - begin, 1) for part, begin, end in zip([*self.ends][1:], ends, ends[1:])}


def chain(run: str) -> list[str]:
    """The warm-ups and runs that lead from the untouched student to ``run``, in their order.

    Raises:
        ValueError: where it begins elsewhere.
    """
    names = [run]
    while (begin := base(names[0])) != UNTOUCHED:
        if begin in names or (begin not in WARMUPS and f"embedded/{begin}" not in config_names()):
            raise ValueError(f"{names[0]} begins with {begin!r}; a speedrun begins with {UNTOUCHED}")
        names.insert(0, begin if begin in WARMUPS else f"embedded/{begin}")
    return names


def base(name: str) -> str:
    """The student that a warm-up or run begins with."""
    return str(WARMUPS.get(name, {}).get("student", "student") if name in WARMUPS else read_config(name).get("student"))


def parts(args: argparse.Namespace, options: Sequence[str]) -> dict[str, dict[str, Any] | RelayGRPOConfig]:
    """The settings of each warm-up and run, by the name of its folder; students, seeds and folders come later."""
    if useless := {"--seed", "--student", "--output_dir"} & {option.partition("=")[0] for option in options}:
        raise ValueError(f"{', '.join(sorted(useless))} cannot be chosen here; see --seeds and --out")
    names, found = chain(args.run), dict[str, Any]()
    for number, name in enumerate(names, start=1):
        if name in WARMUPS:
            settings: Any = {"suites": SUITES, "full": True, "max_tokens": 160} | WARMUPS[name]
            settings |= (QUICK_WARMUP if args.quick else {}) | read_yaml(args.warmup, "--warmup")
        else:
            own = options if name == names[-1] else ()
            settings = parse_config(name, ["--output_dir", "unused", *own])
            settings = make_config(settings, **QUICK_GRPO) if args.quick else settings
        found[f"{number}-{Path(name).stem}"] = settings
    return found


def run_once(plan: dict[str, Any], folder: Path, seed: int) -> tuple[Path, dict[str, float]]:
    """Train with one seed. Returns the student's folder and the seconds of each part."""
    folder.mkdir(parents=True, exist_ok=True)
    clock, student = Clock(folder / "clock.json"), Path(UNTOUCHED)
    for name, settings in plan.items():
        out = folder / name
        if isinstance(settings, RelayGRPOConfig):
            changed = {"student": student.as_posix(), "output_dir": str(out), "seed": seed, "use_cpu": True}
            student = train(make_config(settings, **changed), callbacks=[clock])
        else:
            own = settings | {"seed": seed, "device": "cpu", "student": student.as_posix()}
            stream = mixture(seed=own.pop("data_seed"), suites=tuple(own.pop("suites")))
            chosen = list(islice(stream, own.pop("num_problems")))
            student = warmup(own.pop("student"), chosen, out, **own).student
        clock.end(name)
    return student, clock.seconds


def two_cores() -> str:
    """Keep this process on two cores where the system can; says how many it has."""
    if not hasattr(os, "sched_setaffinity"):
        return f"{os.cpu_count()} cores, not limited"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    return f"{len(os.sched_getaffinity(0))} cores"


def machine(cores: str, threads: int) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    what = f"{model or platform.machine()}, {cores}, {threads} threads, {platform.system()}"
    return f"{what}, Python {platform.python_version()}, {packages}"


def commit() -> str:
    """The commit of the code, with a + if files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--warmup", default="{}", metavar="YAML", help="settings over those of the run's warm-up")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"default: 1 to {SEEDS}; with --quick: 1")
    parser.add_argument("--threads", type=int, default=1, help="of torch; two are no faster for models of this size")
    parser.add_argument("--quick", action="store_true", help="a few steps and problems: does the script work?")
    parser.add_argument("--out", type=Path, help="default: runs/speedrun/ and the name of the run")
    args, options = parser.parse_known_args()
    seeds = args.seeds or ([1] if args.quick else list(range(1, SEEDS + 1)))
    where, load = machine(two_cores(), args.threads), [round(x, 1) for x in getattr(os, "getloadavg", tuple)()]
    torch.set_num_threads(args.threads)
    try:
        plan = parts(args, options)
        settings = {name: part.bound if isinstance(part, RelayGRPOConfig) else part for name, part in plan.items()}
        run = " ".join([args.run, *(["--warmup", args.warmup] if args.warmup != "{}" else []), *options])
        bound = {"run": run, "commit": commit(), "machine": where, "quick": args.quick, "settings": settings}
        name = Path(args.run).stem + ("-quick" if args.quick else "")
        out = bind_folder((args.out or Path("runs", "speedrun", name)).absolute(), bound)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None

    # 1) Training, one seed after the other. Only this is on the clock.
    try:
        runs = {seed: run_once(plan, out / f"seed-{seed}", seed) for seed in seeds}
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on from here; the clock does not stop") from None
    # 2) All students on the held-back problems, greedy, with the caps of their training.
    begin = time.monotonic()
    held_back = [p for s in TAUGHT for p in problems(s, 2 if args.quick else 100, start=HELD_BACK)]
    relay = "relay:student=" + "+".join(str(student) for student, _ in runs.values())
    table = evaluate(
        ["student", "teacher", relay], held_back, out / "evaluation",
        student=UNTOUCHED, teacher=TEACHER, max_tokens=160, batch_size=128,
    )  # fmt: skip
    label = variants(relay)[0][0]
    figures, own = summary(table).set_index("method"), table[table["method"] == label]
    alone, best = (figures.loc[name, "accuracy"] for name in ("student", "teacher"))
    result = figures.loc[label]
    # 3) The record.
    record: dict[str, Any] = bound | {"date": date.today().isoformat(), "load_before": load, "seeds": {}}
    for seed, (student, seconds) in runs.items():
        answers = own[own["student"] == str(student)]
        accuracy, share = answers["correct"].mean(), answers["teacher_tokens"].sum() / answers["tokens"].sum()
        record["seeds"][seed] = {
            "seconds": seconds, "minutes": sum(seconds.values()) / 60, "accuracy": accuracy,
            "gap": (accuracy - alone) / (best - alone), "teacher_share": share,
        }  # fmt: skip
    minutes = [one["minutes"] for one in record["seeds"].values()]
    missing = {
        "a look cannot qualify": args.quick,
        f"it has fewer than {SEEDS} seeds": len(seeds) < SEEDS,
        f"less than {GAP:.0%} of the gap": result["gap"] < GAP,
        f"more than {SHARE:.0%} teacher tokens": result["teacher_share"] > SHARE,
        "the code is not a commit": not bound["commit"].isalnum() or bound["commit"] == "unknown",
    }
    record |= {
        "evaluation": {
            "problems": len(held_back), "seconds": round(time.monotonic() - begin, 1), "student": alone,
            "teacher": best, **{name: result[name] for name in ("accuracy", "low", "high")},
        },
        "minutes": fmean(minutes),
        "gap": [result[name] for name in ("gap", "gap_low", "gap_high")],
        "teacher_share": [result[name] for name in ("teacher_share", "teacher_low", "teacher_high")],
        "qualifies": not any(missing.values()),
    }  # fmt: skip
    write_json(out / "record.json", record)
    for seed, one in record["seeds"].items():
        times = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in one["seconds"].items())
        print(f"seed {seed}: {one['minutes']:.1f} min ({times}); gap {one['gap']:.1%} at {one['teacher_share']:.1%}")
    print(f"{where}; load before: {load}; {len(held_back)} held-back problems in {record['evaluation']['seconds']} s")
    print("qualifies" if record["qualifies"] else f"does not qualify: {'; '.join(k for k, v in missing.items() if v)}")
    gap, share = ("{:.1%} ({:.1%}, {:.1%})".format(*record[name]) for name in ("gap", "teacher_share"))
    each = ", ".join(f"{m:.1f}" for m in minutes)
    entry = (record["date"], f"{fmean(minutes):.1f} ({each})", record["run"], gap, share, record["commit"])
    print(f"| {' | '.join(entry)} |")


if __name__ == "__main__":
    main()
