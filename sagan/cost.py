"""The cost of a config in parameters, operations and bytes, counted on networks of the meta device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sagan.config import Config
from sagan.losses import r1
from sagan.networks import Discriminator, Generator, num_parameters

_BYTES_PER_PARAMETER = 16  # fp32: the weight, its gradient, two moments of Adam


@dataclass(frozen=True)
class Cost:
    """`flops_per_image`: one image through G and D, forward only; a multiplication and an addition count as two.

    `memory_mib`: weights, gradients, Adam's moments, the average of G, and what autograd keeps for the larger of both
    backward passes. Not included: overhead of allocator and libraries, a recorded step (some 15 %), images on a GPU.
    """

    num_params_g: int
    num_params_d: int
    flops_per_image: int
    flops_per_step: int
    memory_mib: float


@cache
def count(config: Config, num_classes: int) -> Cost:
    """Counts for the networks of `config`; takes about a second and almost no memory."""
    has_r1 = config.optim.r1_gamma > 0
    with torch.device("meta"):
        generator = Generator(config.model, config.data.resolution, num_classes)
        discriminator = Discriminator(config.model, config.data.resolution, num_classes)
        kept: dict[int, list[int]] = {}  # by G and by D, for so many images
        for batch in (2, 4):
            z, labels = torch.empty(batch, config.model.z_dim), torch.zeros(batch, dtype=torch.long)
            kept_g, kept_d = dict[int, torch.UntypedStorage](), dict[int, torch.UntypedStorage]()
            flops_g, flops_d, flops_r1 = (FlopCounterMode(display=False) for _ in range(3))
            with flops_g, _collected(kept_g), _FusedAttention():
                fake = generator(z, labels)
            images = fake.detach().requires_grad_(has_r1)
            # R1 computes attention without the fused kernel, which has no second derivative (sagan/passes.py).
            with _collected(kept_d), nullcontext() if has_r1 else _FusedAttention():
                with flops_d:
                    logits = discriminator(images, labels)
                if has_r1:
                    with flops_r1:
                        r1(logits, images)
            kept[batch] = [sum(storage.nbytes() for storage in found.values()) for found in (kept_g, kept_d)]
    g, d, gradient = (flops.get_total_flops() // batch for flops in (flops_g, flops_d, flops_r1))  # of the last batch

    def kept_for(n: int, network: int) -> float:
        """Linear in the batch size: normalised weights are saved once, activations per image."""
        few, more = kept[2][network], kept[4][network]
        return few + (more - few) / 2 * (n - 2)

    optim = config.optim
    # A backward pass is about two forward ones. D step: G forward, D forward and backward on real and fake.
    # G step: G forward and backward, D forward and backward to its input alone. R1's gradient is like another forward
    # pass of D over real and fake: it has a backward pass of its own.
    per_image = optim.d_steps * (g + 2 * 3 * (d + gradient)) + 3 * g + 2 * d
    num_g, num_d = num_parameters(generator), num_parameters(discriminator)
    size = optim.batch_size
    activations = max(kept_for(2 * size, 1), kept_for(size, 0) + kept_for(size, 1))
    if optim.precision == "bf16":
        activations /= 2
    weights = _BYTES_PER_PARAMETER * (num_g + num_d) + 4 * num_g
    return Cost(num_g, num_d, g + d, per_image * size, (activations + weights) / 2**20)


def _collected(found: dict[int, torch.UntypedStorage]) -> torch.autograd.graph.saved_tensors_hooks:
    """Puts into `found` what autograd keeps for the backward pass, each storage once."""

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch takes the implementation that stores the N x M matrix; elsewhere one that does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            kernel = torch.ops.aten._scaled_dot_product_efficient_attention
            return kernel(*args, None, True, scale=kwargs["scale"])[0]
        return func(*args, **(kwargs or {}))
