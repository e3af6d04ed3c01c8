"""relaylab: teach and study token-level collaborative decoding.

    import relaylab as rl

    pair = rl.load_pair()
    trace = pair.solve(rl.problem("harvest", 1))
    trace

The names are listed in ``__init__.pyi`` and imported when they are first used, so ``import relaylab`` needs no torch.
"""

import lazy_loader

from relaylab.trace import Trace
from relaylab.version import __version__ as __version__
from relaylab.views.trace_view import trace_html, trace_text

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# A trace shows itself. The record knows no views, so they are joined here.
Trace._repr_html_ = trace_html  # type: ignore[attr-defined]
Trace.__repr__ = trace_text  # type: ignore[method-assign]
