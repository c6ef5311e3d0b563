"""What the networks minimise: adversarial losses of D's logits (B,) by their name in `optim.loss`, the class loss of
AC-GAN, and the R1 penalty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))): paper, equation 4."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    return -fake.mean()


def non_saturating_d(real: Tensor, fake: Tensor) -> Tensor:
    """-mean log s(D(x)) - mean log(1 - s(D(G(z)))), s the sigmoid: Goodfellow et al. 2014, equation 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    """-mean log s(D(G(z))), whose gradient does not vanish where D is sure (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-fake).mean()


def r1(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over images (B, ...) of |gradient of D at the image|^2; D's weights can be trained to lower it.

    R1 adds `optim.r1_gamma` / 2 of it, at real images, to D's loss (Mescheder et al. 2018, arXiv 1801.04406, eq. 9).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def auxiliary_d(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> Tensor:
    """AC-GAN (Odena et al. 2017, L_C): D learns the class (logits (B, classes)) of real images and of fake ones."""
    return F.cross_entropy(real, real_labels) + F.cross_entropy(fake, fake_labels)


def auxiliary_g(fake: Tensor, fake_labels: Tensor) -> Tensor:
    return F.cross_entropy(fake, fake_labels)


LOSSES = {"hinge": (hinge_d, hinge_g), "non_saturating": (non_saturating_d, non_saturating_g)}
