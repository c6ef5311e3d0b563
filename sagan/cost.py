"""What a config costs, counted on networks without storage: parameters, operations, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sagan.config import Config
from sagan.networks import Discriminator, Generator, num_parameters

_BYTES_PER_PARAMETER = 16  # fp32: the weight, its gradient, two moments of Adam


@dataclass(frozen=True)
class Cost:
    """`flops_per_image`: of one image through G and D, forward, a multiplication and an addition being two.

    `memory_mib`: weights, gradients, Adam's moments, the average of G, and what autograd keeps of the larger of the
    two passes; the allocator's and the libraries' own share come on top.
    """

    num_params_g: int
    num_params_d: int
    flops_per_image: int
    flops_per_step: int
    memory_mib: float


@cache
def count(config: Config, num_classes: int) -> Cost:
    """Counts for the networks of `config`; takes about a second and no memory worth naming."""
    with torch.device("meta"):
        generator = Generator(config.model, config.data.resolution, num_classes)
        discriminator = Discriminator(config.model, config.data.resolution, num_classes)
        z, labels = torch.empty(2, config.model.z_dim), torch.zeros(2, dtype=torch.long)
        kept_g, kept_d = _KeptBytes(), _KeptBytes()
        with FlopCounterMode(display=False) as flops_g, kept_g, _FusedAttention():
            images = generator(z, labels)
        with FlopCounterMode(display=False) as flops_d, kept_d, _FusedAttention():
            discriminator(images.detach(), labels)
    g, d = flops_g.get_total_flops() // 2, flops_d.get_total_flops() // 2
    optim = config.optim
    # A backward pass is about two forward ones. D step: G forward, D forward and backward on real and fake.
    # G step: G forward and backward, D forward and backward to its input alone.
    per_image = optim.d_steps * (g + 2 * 3 * d) + 3 * g + 2 * d
    num_g, num_d = num_parameters(generator), num_parameters(discriminator)
    kept = max(2 * kept_d.total, kept_g.total + kept_d.total) / 2 * optim.batch_size
    if optim.precision == "bf16":
        kept /= 2
    weights = _BYTES_PER_PARAMETER * (num_g + num_d) + 4 * num_g
    return Cost(num_g, num_d, g + d, per_image * optim.batch_size, (kept + weights) / 2**20)


class _KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the bytes that autograd keeps for the backward pass, each tensor once."""

    def __init__(self) -> None:
        self.seen: dict[int, torch.UntypedStorage] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.seen[storage._cdata] = storage
        return tensor

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.seen.values())


class _FusedAttention(TorchFunctionMode):
    """Without storage torch takes the form that keeps the N x M matrix; with it, a kernel that does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            kernel = torch.ops.aten._scaled_dot_product_efficient_attention
            return kernel(*args, None, True, scale=kwargs["scale"])[0]
        return func(*args, **(kwargs or {}))
