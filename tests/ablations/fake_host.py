"""One machine as several: FAKE_HOST is the simulated host name of a process, with a short grace period."""

import os
from functools import partial

from ablations import launcher, queue

GRACE = 10.0  # or as many seconds as FAKE_GRACE says; then signs of life come as much more often


def pretend() -> None:
    if host := os.environ.get("FAKE_HOST"):
        grace = float(os.environ.get("FAKE_GRACE", GRACE))
        launcher.BEAT_SECONDS *= grace / GRACE
        queue._host = lambda: host
        launcher.CellQueue = partial(queue.CellQueue, timeout_seconds=grace)
