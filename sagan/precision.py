"""Which operations run in bf16: torch's autocast, by the name that `optim.precision` gives."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """Activations of what runs within in bf16, or all as it is; an inner "fp32" holds against an outer "bf16"."""
    if device.type == "meta":
        return nullcontext()  # counted, never run
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
