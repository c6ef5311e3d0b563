"""The forward passes of a training step, from a batch to the objectives, and whether a GPU should compile them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.augmentation import augmented
from sagan.config import Config
from sagan.cost import count
from sagan.losses import LOSSES, auxiliary_d, auxiliary_g, r1
from sagan.networks import Discriminator, Generator
from sagan.sampling import to_unit_range

# Measured on an H200 with torch 2.11, each at one size (tests/benchmarks/results_gpu.md). Compiling both passes of
# 128 px networks had not ended after 190 s. A replayed step reached 159 TFLOP/s in bf16 at width 64 and 9 in fp32 at
# width 16, where the kernels of a compiled one took 16 % less time at most. At other widths and batches the estimate
# may be wrong by a factor of several; it distinguishes runs of minutes from runs of days.
_COMPILE_SECONDS = 200.0
_FLOPS_PER_SECOND = {"bf16": 159e12, "fp32": 9e12}
_SAVED = 0.16


def pays_to_compile(config: Config, num_classes: int) -> bool:
    """Whether compiling both passes takes less time than it saves over all steps of a run on a GPU (an estimate).

    The answer depends on the config alone, so a resumed run has the same one. Never with R1: torch.compile cannot trace
    a gradient of a gradient.
    """
    if config.optim.r1_gamma:
        return False
    seconds = config.optim.steps * count(config, num_classes).flops_per_step / _FLOPS_PER_SECOND[config.optim.precision]
    return _SAVED * seconds > _COMPILE_SECONDS


def compiled_passes(backend: str) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor]]]:
    """Both passes of this module under torch.compile."""
    # A process may train several variants; torch refuses to compile more than eight versions of one function.
    torch.compiler.reset()
    # While it reorders loops to fuse them, torch 2.11 fails at the grouped division of spectral norm (AssertionError).
    options: dict[str, Any] | None = {"loop_ordering_after_fusion": False} if backend == "inductor" else None
    compiler = torch.compile(backend=backend, fullgraph=True, dynamic=False, options=options)
    return compiler(discriminator_pass), compiler(generator_pass)


def discriminator_pass(
    config: Config,
    generator: Generator,
    discriminator: Discriminator,
    real: Tensor,
    labels: Tensor,
    z: Tensor,
    fake_labels: Tensor,
    draws: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """D's objective, and what is logged: [loss_d, logit_real, logit_fake], then loss_class and r1 where they are used.

    `real` is uint8 (B, 3, R, R); `draws` (2B, 7) are the random numbers of `data.augment`, for real images first.
    `loss_d` is without the class head's loss and without R1, so that it compares over variants.
    """
    loss, _ = LOSSES[config.optim.loss]
    gamma = config.optim.r1_gamma
    with torch.no_grad():
        fake = generator(z, fake_labels)
    images_real = to_unit_range(real).to(z.dtype).requires_grad_(gamma > 0)
    # One pass over real and fake images: D has no batch norm, so this equals two passes, and is faster.
    images = augmented(torch.cat([images_real, fake]), draws, config.data.augment)
    with sdpa_kernel(SDPBackend.MATH) if gamma else nullcontext():  # fused attention has no second derivative
        logits, class_logits = discriminator.logits(images, torch.cat([labels, fake_labels]), update=True)
    logit_real, logit_fake = logits.chunk(2)
    objective = loss(logit_real, logit_fake)
    logged = [objective, logit_real.mean(), logit_fake.mean()]
    if class_logits is not None:
        class_real, class_fake = class_logits.chunk(2)
        logged.append(auxiliary_d(class_real, labels, class_fake, fake_labels))
        objective = objective + logged[-1]
    if gamma:
        logged.append(r1(logit_real, images_real))
        objective = objective + gamma / 2 * logged[-1]
    return objective, torch.stack(logged).detach()


def generator_pass(
    config: Config,
    generator: Generator,
    discriminator: Discriminator,
    z: Tensor,
    fake_labels: Tensor,
    draws: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """G's objective, and its adversarial loss, which is logged. `draws` (B, 7) as in `discriminator_pass`."""
    _, loss = LOSSES[config.optim.loss]
    images = augmented(generator(z, fake_labels), draws, config.data.augment)
    logits, class_logits = discriminator.logits(images, fake_labels)
    loss_g = loss(logits)
    if class_logits is None:
        return loss_g, loss_g.detach()
    return loss_g + auxiliary_g(class_logits, fake_labels), loss_g.detach()
