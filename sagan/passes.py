"""The forward passes of a training step, from a batch to the objectives, and whether a GPU should compile them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagan.config import Config
from sagan.cost import count
from sagan.losses import auxiliary_d, auxiliary_g
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

    The answer depends on the config alone, so a resumed run has the same one.
    """
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
    generator: Generator,
    discriminator: Discriminator,
    loss: Callable[[Tensor, Tensor], Tensor],
    real: Tensor,
    labels: Tensor,
    z: Tensor,
    fake_labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """D's objective, and [loss_d, logit_real, logit_fake], with loss_class added where D has a class head.

    `real` is uint8 (B, 3, R, R). The class head's loss is logged separately, so that loss_d compares over variants.
    """
    with torch.no_grad():
        fake = generator(z, fake_labels)
    # One pass over real and fake images: D has no batch norm, so this equals two passes, and is faster.
    images = torch.cat([to_unit_range(real), fake])
    logits, class_logits = discriminator.judge(images, torch.cat([labels, fake_labels]), update=True)
    logit_real, logit_fake = logits.chunk(2)
    loss_d = loss(logit_real, logit_fake)
    logged = [loss_d, logit_real.mean(), logit_fake.mean()]
    if class_logits is None:
        return loss_d, torch.stack(logged).detach()
    class_real, class_fake = class_logits.chunk(2)
    loss_class = auxiliary_d(class_real, labels, class_fake, fake_labels)
    return loss_d + loss_class, torch.stack([*logged, loss_class]).detach()


def generator_pass(
    generator: Generator,
    discriminator: Discriminator,
    loss: Callable[[Tensor], Tensor],
    z: Tensor,
    fake_labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """G's objective, and its adversarial loss, which is logged."""
    logits, class_logits = discriminator.judge(generator(z, fake_labels), fake_labels)
    loss_g = loss(logits)
    if class_logits is None:
        return loss_g, loss_g.detach()
    return loss_g + auxiliary_g(class_logits, fake_labels), loss_g.detach()
