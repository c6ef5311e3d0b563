"""The device that these tests are about: the first CUDA card, or what the environment variable DEVICE names.

With DEVICE=cpu the CPU stands for the card, for a rehearsal: every line of the tests runs. What a CPU cannot show is
said where it is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")
_NAMED = torch.device(os.environ.get("DEVICE") or "cuda")
DEVICE = torch.device("cuda", _NAMED.index or 0) if _NAMED.type == "cuda" else _NAMED
IS_CARD = DEVICE.type == "cuda"


@contextmanager
def on_the_card() -> Iterator[None]:
    """What is computed here rounds differently than on the CPU; in a rehearsal because oneDNN's kernels are off."""
    if IS_CARD:
        yield
    else:
        with torch.backends.mkldnn.flags(enabled=False):
            yield
