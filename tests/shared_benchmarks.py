"""Halves of real benchmarks that a checkout may have beside it, and how many rows each holds."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("RELAYLAB_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "benchmarks"
COUNTS = {
    "aime24": 15,
    "aime25": 15,
    "amc23": 20,
    "bbeh_mini": 230,
    "gsm8k": 660,
    "gsm8k_train": 2000,
    "math500": 250,
    "minerva_math": 136,
    "olympiadbench": 338,
}
