"""One machine as several: FAKE_HOST names the host that a process takes itself to be on, with a short grace period."""

import os
from functools import partial

from ablations import queue

GRACE = 10.0


def pretend() -> None:
    if host := os.environ.get("FAKE_HOST"):
        from ablations import session

        queue._host = lambda: host
        session.CellQueue = partial(queue.CellQueue, grace=GRACE)
