"""Generator and discriminator of SAGAN for 32 to 256 px (Zhang et al. 2019, section 3; official code).

The 128 px networks are the official ones. The others have the official blocks in the layouts that BigGAN-PyTorch and
StudioGAN share; where these two differ, in G at 64 px and in D at 32 px, the layout is StudioGAN's. Their parameter
counts are in tests/test_networks.py.

Initialisation is the official one by default: xavier-uniform, zero biases, cBN tables 1 and 0. Each layer draws from
a stream of its own name: two variants with the same seed start from the same weights wherever they have the same layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention import SelfAttention2d, attention_block
from sagan.config import ModelConfig
from sagan.device import autocast
from sagan.layers import BatchNormReLU, Conv2d, DiscriminatorBlock, Embedding, GeneratorBlock, Linear
from sagan.spectral_norm import SpectralNormWeight, apply_spectral_norm
from sagan.streams import stream

# Channels in multiples of the width: of the 4x4 map, then of every block's output.
_LAYOUT_G = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
_LAYOUT_D = {32: (2, 2, 2, 2), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}


class Generator(nn.Module):
    """Images in [-1, 1] from noise and labels: z (B, z_dim), labels (B,) -> (B, 3, R, R).

    In training mode batch statistics are used and folded into the running ones, and spectral norm iterates once, in
    every forward pass: the D step's too, as in the official code.
    """

    weight_layers: list[SpectralNormWeight]

    def __init__(self, config: ModelConfig, resolution: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        base, *multiples = (config.width_g * m for m in _LAYOUT_G[resolution])
        rows = None if config.conditioning == "none" else num_classes
        self.sn_eps = config.sn.eps
        self.z_dim = config.z_dim
        self.base = base
        self.linear = Linear(config.z_dim, base * 16, spectral_norm=config.sn.g)
        self.blocks = nn.ModuleList()
        self.attention = nn.ModuleDict()
        channels = base
        for index, wider in enumerate(multiples):
            self.blocks.append(GeneratorBlock(channels, wider, rows, config))
            channels = wider
            size = 8 << index
            if size in config.attention.at and config.attention.networks in ("both", "G"):
                self.attention[str(size)] = attention_block(channels, size, config)
        self.bn = BatchNormReLU(channels, None, momentum=config.final_bn_momentum, eps=config.bn_eps)
        self.out = Conv2d(channels, 3, 3, spectral_norm=config.sn.g)
        self.norms = [module for module in self.modules() if isinstance(module, BatchNormReLU)]
        _initialise(self, config, seed)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        apply_spectral_norm(self.weight_layers, update=self.training, eps=self.sn_eps)
        for _, h in self._feature_maps(z, labels):
            final = h
        return torch.tanh(self.out(self.bn(final, labels)))

    def split_batch_norm(self, groups: int, process_group: dist.ProcessGroup | None) -> None:
        """Set how many groups of a batch are normalised separately, or with which processes one group is shared."""
        for norm in self.norms:
            norm.groups, norm.process_group = groups, process_group

    def running_statistics(self) -> list[Tensor]:
        return [statistic for norm in self.norms for statistic in (norm.running_mean, norm.running_var)]

    def attention_maps(self, z: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """{"32": (B, N, M)}: the attention weights of every self-attention block, by the size of its feature map."""
        apply_spectral_norm(self.weight_layers, update=False, eps=self.sn_eps)
        maps: dict[str, Tensor] = {}
        for features, _ in self._feature_maps(z, labels):
            size = str(features.shape[-1])
            block = self.attention[size] if size in self.attention else None
            if isinstance(block, SelfAttention2d):
                maps[size] = block.attention(features)
        return maps

    def _feature_maps(self, z: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For every block its output, before and after the attention that may follow it."""
        h = self.linear(z).view(-1, self.base, 4, 4).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            features = block(h, labels)
            size = str(features.shape[-1])
            h = self.attention[size](features) if size in self.attention else features
            yield features, h


class Discriminator(nn.Module):
    """Logits of real against fake: images (B, 3, R, R) in [-1, 1], labels (B,) -> (B,). Wide; no batch norm.

    Labels act by projection, unless `config.conditioning` has a class head in its place (AC-GAN) or neither.
    `update` says whether spectral norm iterates in this pass: the official code does so on the real pass of a D step.
    """

    weight_layers: list[SpectralNormWeight]

    def __init__(self, config: ModelConfig, resolution: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        multiples = [config.width_d * m for m in _LAYOUT_D[resolution]]
        halvings = 2 if resolution == 32 else len(multiples) - 1  # 32 px stops at 8x8, the others at 4x4
        self.sn_eps = config.sn.eps
        self.blocks = nn.ModuleList()
        self.attention = nn.ModuleDict()
        channels, size = 3, resolution
        for index, wider in enumerate(multiples):
            down = index < halvings
            block = DiscriminatorBlock(channels, wider, down=down, first=index == 0, spectral_norm=config.sn.d)
            self.blocks.append(block)
            channels, size = wider, size // 2 if down else size
            if down and size in config.attention.at and config.attention.networks in ("both", "D"):
                self.attention[str(size)] = attention_block(channels, size, config)
        self.linear = Linear(channels, 1, spectral_norm=config.sn.d)
        self.embedding = self.classifier = None
        if config.conditioning == "projection":
            self.embedding = Embedding(num_classes, channels, spectral_norm=config.sn.d)
        elif config.conditioning == "auxiliary_classifier":
            self.classifier = Linear(channels, num_classes, spectral_norm=config.sn.d)
        _initialise(self, config, seed)

    def forward(self, images: Tensor, labels: Tensor, *, update: bool = False) -> Tensor:
        return self.logits(images, labels, update=update)[0]

    def logits(self, images: Tensor, labels: Tensor, *, update: bool = False) -> tuple[Tensor, Tensor | None]:
        """In one pass the logits of `forward` and, where there is a class head, those of the classes (B, classes)."""
        apply_spectral_norm(self.weight_layers, update=update, eps=self.sn_eps)
        h = images.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            h = block(h)
            size = str(h.shape[-1])
            # Two blocks may have one size; attention follows the one that reduced it.
            if block.down and size in self.attention:
                h = self.attention[size](h)
        with autocast(h.device, "fp32"):  # in bf16 a logit would have three digits
            pooled = F.relu(h).to(self.linear.weight.dtype).sum((2, 3))
            logits: Tensor = self.linear(pooled).squeeze(1)
            if self.embedding is not None:
                logits = (self.embedding(labels) * pooled).sum(1) + logits
            return logits, self.classifier(pooled) if self.classifier is not None else None


def _initialise(network: Generator | Discriminator, config: ModelConfig, seed: int) -> None:
    """Initialise weights, put them into channels_last memory, and list all layers with a weight in `weight_layers`."""
    network.to(memory_format=torch.channels_last)
    network.weight_layers = [layer for layer in network.modules() if isinstance(layer, SpectralNormWeight)]
    if network.weight_layers[0].weight.is_meta:
        return  # on the meta device nothing has values; cost.py counts operations there
    norms = network.norms if isinstance(network, Generator) else []
    gains = {norm.gain for norm in norms}
    is_drawn = config.cbn_init == "drawn" or config.sn.cbn  # a table of zeros has no singular vectors for spectral norm
    constant = {table for norm in norms if not (norm.conditional and is_drawn) for table in (norm.gain, norm.bias)}
    for name, layer in network.named_modules():
        if not isinstance(layer, SpectralNormWeight):
            continue
        generator = stream(seed, f"{type(network).__name__}.{name}")
        if layer in constant:
            nn.init.zeros_(layer.weight)
        elif config.init == "xavier":
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        else:
            # Into another tensor: torch's function cannot write to a kernel in channels_last memory.
            drawn = nn.init.orthogonal_(torch.empty(layer.weight.shape), generator=generator)
            layer.weight.data.copy_(drawn)
        if layer in gains and not layer.spectral_norm:  # with spectral norm the layer adds 1 in its forward pass
            layer.weight.data.add_(1)
        if layer.spectral_norm:
            nn.init.normal_(layer.u, generator=generator)
            nn.init.normal_(layer.v, generator=generator)
    with torch.no_grad():
        for _ in range(15):  # as torch's parametrisation does, so that the first step is already normalised
            apply_spectral_norm(network.weight_layers, update=True, eps=config.sn.eps)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
