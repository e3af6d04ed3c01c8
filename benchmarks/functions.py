"""How much code one relay runs: distinct functions and files of relaylab in one ``pair.solve``.

    python benchmarks/functions.py

Counted with ``sys.setprofile`` on the embedded pair, after loading. Generator expressions, comprehensions and lambdas
belong to the function around them.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import relaylab as rl

PACKAGE = Path(rl.__file__).parent
QUESTION = (
    "A row has 61 red and 28 blue tiles. From each row 15 tiles are taken. A wall has 8 parts of 6 rows. "
    "How many tiles are there?"
)


def main() -> None:
    pair = rl.load_pair()
    pair.solve(QUESTION)  # what is made once (tables, imports) is not the algorithm
    seen: dict[str, set[str]] = defaultdict(set)

    def note(frame, event, _):
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname
        if event == "call" and file.startswith(str(PACKAGE)) and not name.endswith(">"):
            seen[str(Path(file).relative_to(PACKAGE))].add(name)

    sys.setprofile(note)
    trace = pair.solve(QUESTION)
    sys.setprofile(None)
    print(trace.text)
    for file, names in sorted(seen.items()):
        print(f"{file:28} {len(names):3}  {', '.join(sorted(names))}")
    print(f"{sum(map(len, seen.values()))} functions in {len(seen)} files")


if __name__ == "__main__":
    main()
