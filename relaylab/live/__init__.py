"""Views that need a kernel: they decode while one looks on. What they have found, they also show without one."""

from relaylab.live.bench import LiveBench
from relaylab.live.counterfactual import Counterfactual

__all__ = ["Counterfactual", "LiveBench"]
