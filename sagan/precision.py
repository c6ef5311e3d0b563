"""Which operations run in bf16: torch's autocast, by the name that `optim.precision` gives."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """A context with activations in bf16, or for "fp32" without autocast; an inner context overrides an outer one."""
    if device.type == "meta":
        return nullcontext()  # on the meta device, where cost.py counts operations
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
