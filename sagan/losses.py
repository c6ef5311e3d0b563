"""Adversarial losses: functions of D's logits (B,), by the name that `optim.loss` gives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))): paper, equation 4."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    return -fake.mean()


LOSSES = {"hinge": (hinge_d, hinge_g)}
