"""SAGAN written the obvious way: what the fast path of `sagan` computes, without anything that makes it fast.

Upsample, then convolve; convolve, then pool; softmax(QK)V with the N x M matrix; torch's own spectral norm, batch norm
and Adam; real and fake through D one after the other; gradients of D taken in the G step and thrown away; NCHW.
Modules have the names that they have in `sagan.networks`, so `pairs` finds what belongs together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sagan.config import AttentionConfig, ModelConfig
from sagan.losses import LOSSES
from sagan.networks import Discriminator, Generator
from sagan.sampling import to_unit_range
from sagan.streams import noise, stream
from sagan.training import Trainer

# Output channels in multiples of the width, block by block; G's first is the 4x4 map.
BLOCKS_G = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
# D halves at every block but the last two of 32 px and the last one of the others.
BLOCKS_D = {32: (2, 2, 2, 2), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
HALVINGS = {32: 2, 64: 4, 128: 5}


class ConditionalNorm(nn.Module):
    """Batch norm, then the gain and bias of the image's class, or of the only row.

    Spectral norm, where it is on, divides both tables, and the gain is 1 + the divided row.
    """

    def __init__(self, channels: int, num_classes: int | None, momentum: float, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, momentum=momentum, eps=config.bn_eps)
        normed = config.sn.cbn and num_classes is not None
        self.gain = _normed(nn.Embedding(num_classes or 1, channels), normed, config)
        self.bias = _normed(nn.Embedding(num_classes or 1, channels), normed, config)
        self.conditional, self.offset = num_classes is not None, 1.0 if normed else 0.0

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        rows = labels if self.conditional else torch.zeros_like(labels)
        gain = self.offset + self.gain(rows)
        return self.norm(x) * gain[:, :, None, None] + self.bias(rows)[:, :, None, None]


class SelfAttention(nn.Module):
    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        attention: AttentionConfig = config.attention
        keys = max(attention.min_key_channels, channels // attention.key_ratio)
        values = max(1, channels // attention.value_ratio)
        self.query = _normed(nn.Conv2d(channels, keys, 1, bias=False), config.sn.attention, config)
        self.key = _normed(nn.Conv2d(channels, keys, 1, bias=False), config.sn.attention, config)
        self.value = _normed(nn.Conv2d(channels, values, 1, bias=False), config.sn.attention, config)
        self.out = _normed(nn.Conv2d(values, channels, 1, bias=False), config.sn.attention, config)
        self.gamma = nn.Parameter(torch.tensor(attention.gamma))
        self.pool, self.scale = attention.pool, keys**-0.5 if attention.scale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.pool:
            key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        attended = explicit_attention(query.flatten(2), key.flatten(2), value.flatten(2), self.scale)
        return x + self.gamma * self.out(attended.view(len(x), -1, *x.shape[2:]))


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """(B, K, N), (B, K, M), (B, V, M) -> (B, V, N), by way of the (B, N, M) matrix."""
    weights = torch.softmax(torch.bmm(query.transpose(1, 2), key) * scale, dim=2)
    return torch.bmm(value, weights.transpose(1, 2))


class GeneratorBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, num_classes: int, config: ModelConfig) -> None:
        super().__init__()
        self.bn1 = ConditionalNorm(channels_in, num_classes, config.bn_momentum, config)
        self.conv1 = _normed(nn.Conv2d(channels_in, channels_out, 3, padding=1), config.sn.g, config)
        self.bn2 = ConditionalNorm(channels_out, num_classes, config.bn_momentum, config)
        self.conv2 = _normed(nn.Conv2d(channels_out, channels_out, 3, padding=1), config.sn.g, config)
        self.shortcut = _normed(nn.Conv2d(channels_in, channels_out, 1), config.sn.g, config)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.bn1(x, labels)), scale_factor=2))
        h = self.conv2(F.relu(self.bn2(h, labels)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2))


class DiscriminatorBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, down: bool, first: bool, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = _normed(nn.Conv2d(channels_in, channels_out, 3, padding=1), config.sn.d, config)
        self.conv2 = _normed(nn.Conv2d(channels_out, channels_out, 3, padding=1), config.sn.d, config)
        if down or channels_in != channels_out:
            self.shortcut = _normed(nn.Conv2d(channels_in, channels_out, 1), config.sn.d, config)
        else:
            self.shortcut = nn.Identity()
        self.down, self.first = down, first

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        skip = self.shortcut(x)
        return F.avg_pool2d(h, 2) + F.avg_pool2d(skip, 2) if self.down else h + skip


class PlainGenerator(nn.Module):
    """z (B, z_dim), labels (B,) -> images (B, 3, R, R) in [-1, 1]; R of 32, 64 or 128."""

    def __init__(self, config: ModelConfig, resolution: int, num_classes: int) -> None:
        super().__init__()
        base, *widths = (config.width_g * multiple for multiple in BLOCKS_G[resolution])
        self.linear = _normed(nn.Linear(config.z_dim, base * 4 * 4), config.sn.g, config)
        self.blocks, self.attention = nn.ModuleList(), nn.ModuleDict()
        channels = base
        for size, width in zip((8, 16, 32, 64, 128), widths, strict=False):
            self.blocks.append(GeneratorBlock(channels, width, num_classes, config))
            if size in config.attention.at and config.attention.networks != "D":
                self.attention[str(size)] = SelfAttention(width, config)
            channels = width
        self.bn = ConditionalNorm(channels, None, config.final_bn_momentum, config)
        self.out = _normed(nn.Conv2d(channels, 3, 3, padding=1), config.sn.g, config)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        h = self.linear(z).view(len(z), -1, 4, 4)
        for block in self.blocks:
            h = block(h, labels)
            if str(h.shape[-1]) in self.attention:
                h = self.attention[str(h.shape[-1])](h)
        return torch.tanh(self.out(F.relu(self.bn(h, labels))))


class PlainDiscriminator(nn.Module):
    """images (B, 3, R, R), labels (B,) -> logits (B,). Spectral norm iterates in training mode only."""

    def __init__(self, config: ModelConfig, resolution: int, num_classes: int) -> None:
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(), nn.ModuleDict()
        channels = 3
        for index, multiple in enumerate(BLOCKS_D[resolution]):
            width, down = config.width_d * multiple, index < HALVINGS[resolution]
            self.blocks.append(DiscriminatorBlock(channels, width, down, index == 0, config))
            size = resolution >> (index + 1)
            if down and size in config.attention.at and config.attention.networks != "G":
                self.attention[str(size)] = SelfAttention(width, config)
            channels = width
        self.linear = _normed(nn.Linear(channels, 1), config.sn.d, config)
        self.embedding = _normed(nn.Embedding(num_classes, channels), config.sn.d, config)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = images
        for block in self.blocks:
            h = block(h)
            if block.down and str(h.shape[-1]) in self.attention:
                h = self.attention[str(h.shape[-1])](h)
        pooled = F.relu(h).sum(dim=(2, 3))
        return self.linear(pooled).squeeze(1) + (self.embedding(labels) * pooled).sum(1)


class PlainTrainer:
    """Trains from where `fast` stands, which has taken no step yet, on the batches and noise that `fast` would draw."""

    def __init__(self, fast: Trainer) -> None:
        assert fast.step == 0, "Adam's moments are not taken over"
        self.config, self.seed, self.batches, self.device = fast.config, fast.seed, fast.batches, fast.device
        self.num_classes, self.step = len(fast.classes), 0
        model, optim, resolution = self.config.model, self.config.optim, self.config.data.resolution
        self.generator = PlainGenerator(model, resolution, self.num_classes).to(self.device)
        self.discriminator = PlainDiscriminator(model, resolution, self.num_classes).to(self.device)
        self.average = PlainGenerator(model, resolution, self.num_classes).to(self.device)
        for mine, theirs in self.networks(fast):
            load(mine, theirs)
        betas, eps = (optim.beta1, optim.beta2), optim.adam_eps
        lr_g, lr_d = optim.rates
        self.optimizer_g = _adam(self.generator, lr_g, betas, eps)
        self.optimizer_d = _adam(self.discriminator, lr_d, betas, eps)
        self.loss_d, self.loss_g = LOSSES[optim.loss]
        self.losses: list[tuple[Tensor, Tensor]] = []

    def networks(self, fast: Trainer) -> Iterator[tuple[nn.Module, Generator | Discriminator]]:
        yield self.generator, fast.generator
        yield self.discriminator, fast.discriminator
        yield self.average, fast.average

    def train_step(self) -> None:
        optim = self.config.optim
        for turn in range(self.step * optim.d_steps, (self.step + 1) * optim.d_steps):
            real, labels = (tensor.to(self.device) for tensor in self.batches(turn))
            z, fake_labels = self._noise("noise_d", turn)
            with torch.no_grad():
                fake = self.generator(z, fake_labels)
            self.discriminator.train()  # D's spectral norm iterates in this pass, and in no other
            images = to_unit_range(real).to(z.dtype).requires_grad_(optim.r1_gamma > 0)
            logit_real = self.discriminator(images, labels)
            self.discriminator.eval()
            loss_d = objective = self.loss_d(logit_real, self.discriminator(fake, fake_labels))
            if optim.r1_gamma:
                (gradient,) = torch.autograd.grad(logit_real.sum(), images, create_graph=True)
                objective = loss_d + optim.r1_gamma / 2 * gradient.square().sum() / len(images)
            self.optimizer_d.zero_grad()
            objective.backward()
            self.optimizer_d.step()

        z, fake_labels = self._noise("noise_g", self.step)
        loss_g = self.loss_g(self.discriminator(self.generator(z, fake_labels), fake_labels))
        self.optimizer_g.zero_grad()
        loss_g.backward()
        self.optimizer_g.step()
        self._average_weights()
        self.losses.append((loss_d.detach(), loss_g.detach()))
        self.step += 1

    @torch.no_grad()
    def _average_weights(self) -> None:
        optim = self.config.optim
        decay = optim.ema_decay if self.step >= optim.ema_start else 0.0
        if optim.ema_decay:
            for target, source in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                target.copy_(decay * target + (1 - decay) * source)

    def _noise(self, purpose: str, turn: int) -> tuple[Tensor, Tensor]:
        drawn = stream(self.seed, purpose, turn)
        z, labels = noise(drawn, self.config.optim.batch_size, self.config.model.z_dim, self.num_classes)
        return z.to(self.device), labels.to(self.device)


def _normed(layer: nn.Module, on: bool, config: ModelConfig) -> nn.Module:
    return spectral_norm(layer, eps=config.sn.eps) if on else layer


def _adam(network: nn.Module, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=lr, betas=betas, eps=eps, foreach=False, fused=False)


def pairs(plain: nn.Module, fast: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every parameter and buffer of `fast` by its name, with the one of `plain` first: (name, plain's, fast's)."""
    mine = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    theirs = {**dict(fast.named_parameters()), **dict(fast.named_buffers())}
    for name, tensor in theirs.items():
        layer, _, leaf = name.rpartition(".")
        places = {
            "weight": (f"{layer}.weight", f"{layer}.parametrizations.weight.original"),
            "u": (f"{layer}.parametrizations.weight.0._u",),
            "v": (f"{layer}.parametrizations.weight.0._v",),
            "running_mean": (f"{layer}.norm.running_mean",),
            "running_var": (f"{layer}.norm.running_var",),
        }
        if leaf != "spread":  # a constant of the fast convolution
            (found,) = [place for place in places.get(leaf, (name,)) if place in mine]
            shape = theirs[f"{layer}.weight"].shape if leaf == "v" else ()
            if len(shape) == 4:  # ours in the order height, width, channel
                tensor = tensor.view(*shape[2:], shape[1]).permute(2, 0, 1).flatten()
            yield name, mine[found], tensor


@torch.no_grad()
def load(plain: nn.Module, fast: nn.Module) -> None:
    for _, mine, theirs in pairs(plain, fast):
        mine.copy_(theirs)
