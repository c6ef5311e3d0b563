"""Adversarial losses, functions of D's logits (B,) by their name in `optim.loss`, and the class loss of AC-GAN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))): paper, equation 4."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    return -fake.mean()


def auxiliary_d(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> Tensor:
    """AC-GAN (Odena et al. 2017, L_C): D learns the class (logits (B, classes)) of real images and of fake ones."""
    return F.cross_entropy(real, real_labels) + F.cross_entropy(fake, fake_labels)


def auxiliary_g(fake: Tensor, fake_labels: Tensor) -> Tensor:
    return F.cross_entropy(fake, fake_labels)


LOSSES = {"hinge": (hinge_d, hinge_g)}
