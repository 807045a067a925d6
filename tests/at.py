"""``python -m tests.at STAMP worker …``: the worker as if it were that moment, and time went on from there.

Only what decides about hours is told another time: what waits, for etcd for instance, goes by the machine's own clock.
"""

from __future__ import annotations

import sys
import time
from functools import partial

from standalone import cli, history

if __name__ == "__main__":
    shift = float(sys.argv[1]) - time.time()
    clock = lambda: time.time() + shift  # noqa: E731
    history.make_dependencies = partial(history.make_dependencies, clock=clock)  # type: ignore[assignment]
    history.make_worker = partial(history.make_worker, clock=clock)  # type: ignore[assignment]
    cli.main(sys.argv[2:])
