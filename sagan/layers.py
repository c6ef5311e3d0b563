"""The layers of SAGAN: spectrally normalised convolutions, conditional batch norm, residual blocks.

Order of operations and parameter shapes follow the official code (ops.py, generator.py and discriminator.py of
brain-research/self-attention-gan); every deviation is named where it is made. Attention has a file of its own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.config import ModelConfig
from sagan.device import autocast
from sagan.spectral_norm import SpectralNormWeight

Resample = Literal["none", "up", "down"]


class Conv2d(SpectralNormWeight):
    """A 3x3 or 1x1 convolution, padded to keep the size; optionally with x2 resampling of a 3x3. A 1x1 is a matrix
    product over the channels, which lie together in channels_last memory.

    "up" is nearest upsampling, then the convolution; "down" is the convolution, then 2x2 average pooling. Both are
    computed exactly as one strided 4x4 kernel, the 3x3 summed over 2x2 shifts: 16 multiplications instead of 36.
    """

    spread: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: Literal[1, 3],
        *,
        spectral_norm: bool,
        resample: Resample = "none",
        bias: bool = True,
    ) -> None:
        super().__init__((channels_out, channels_in, size, size), spectral_norm=spectral_norm)
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.resample = resample
        if resample != "none":
            self.register_buffer("spread", _spread_matrix(resample), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.effective_weight.shape[-1] == 1:  # a matrix product over channels, which are adjacent in memory
            return F.linear(x.permute(0, 2, 3, 1), self.effective_weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if self.resample == "none":
            return F.conv2d(x, self.effective_weight, self.bias, padding=1)
        taps = self.effective_weight.permute(0, 2, 3, 1).flatten(1, 2)
        kernel = (self.spread @ taps).unflatten(1, (4, 4)).permute(0, 3, 1, 2)  # in channels_last memory, as the weight
        if self.resample == "down":
            return F.conv2d(x, kernel, self.bias, stride=2, padding=1)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


def _spread_matrix(resample: Resample) -> Tensor:
    """[16, 9]: takes a 3x3 kernel to its sum over the four shifts in 4x4, flipped for "up", a quarter for "down"."""
    spread = torch.zeros(3, 3, 4, 4)
    for row in range(3):
        for column in range(3):
            spread[row, column, row : row + 2, column : column + 2] = 1 if resample == "up" else 0.25
    if resample == "up":  # a transposed convolution correlates with the kernel turned by 180 degrees
        spread = spread.flip(2, 3)
    return spread.reshape(9, 16).T.contiguous()


class Linear(SpectralNormWeight):
    def __init__(self, features_in: int, features_out: int, *, spectral_norm: bool) -> None:
        super().__init__((features_out, features_in), spectral_norm=spectral_norm)
        self.bias = nn.Parameter(torch.zeros(features_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight, self.bias)


class Embedding(SpectralNormWeight):
    """A row of `num_classes` x `features` for each label."""

    def __init__(self, num_classes: int, features: int, *, spectral_norm: bool) -> None:
        super().__init__((num_classes, features), spectral_norm=spectral_norm)

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.effective_weight)


class BatchNormReLU(nn.Module):
    """Batch norm, gain and bias, ReLU: (B, C, H, W) -> the same.

    `gain` and `bias` are tables [num_classes, C] from which the label picks a row (ConditionalBatchNorm of the official
    ops.py), or have one row for all (`num_classes` None: the last layer of G). With `spectral_norm` both tables are
    divided by their largest singular value, each by its own, and the gain is 1 + its row, as in StudioGAN: dividing a
    table of gains near 1 would make them as small as 1 / sqrt(num_classes * C).

    Momentum is torch's: the weight of the new batch. A batch is normalised by its biased variance, and the running
    variance is updated with the unbiased one, as in torch; the official code uses the biased one for both.

    Each of `groups` equal, contiguous groups of a batch has its own statistics; with `process_group`, one group spans
    the batches of its processes. Running statistics are updated with the mean over the groups.
    """

    running_mean: Tensor
    running_var: Tensor
    groups = 1
    process_group: dist.ProcessGroup | None = None

    def __init__(
        self, channels: int, num_classes: int | None, *, momentum: float, eps: float, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        self.gain = Embedding(num_classes or 1, channels, spectral_norm=spectral_norm)
        self.bias = Embedding(num_classes or 1, channels, spectral_norm=spectral_norm)
        self.conditional = num_classes is not None
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        rows = labels if self.conditional else torch.zeros_like(labels)
        gain, bias = self.gain(rows), self.bias(rows)
        if self.gain.spectral_norm:
            gain = 1 + gain
        if self.training:
            normed: tuple[Tensor, Tensor, Tensor] = _NormReLU.apply(
                x, gain, bias, self.eps, self.groups, self.process_group
            )
            y, mean, var = normed
            count = _values_per_channel(x, self.groups, self.process_group)
            with torch.no_grad():
                self.running_mean.lerp_(mean.mean(0), self.momentum)
                self.running_var.lerp_(var.mean(0) * (count / (count - 1)), self.momentum)
            return y
        scale = gain * torch.rsqrt(self.running_var + self.eps)
        shift = bias - self.running_mean * scale
        return torch.addcmul(_spatial(shift), x, _spatial(scale)).relu_()


class _NormReLU(torch.autograd.Function):
    """relu(gain * (x - mean) / std + bias) over each group of a batch, and the groups' means and biased variances
    [groups, C].

    Written out because torch's own operators pass over the activations some fourteen times, this nine times.
    Activations may be bf16; all else, statistics included, has the precision of the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        bias: Tensor,
        eps: float,
        groups: int,
        process_group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = [_batch_statistics(group) for group in x.chunk(groups)]
        mean, var = (torch.stack(values) for values in zip(*found, strict=True))
        if process_group is not None:
            mean, var = _combined(mean, var, process_group)
        rstd = torch.rsqrt(var + eps)
        scale = gain * _by_image(rstd, x)
        y = torch.addcmul(_spatial(bias - _by_image(mean, x) * scale), x, _spatial(scale)).relu_().to(x.dtype)
        ctx.save_for_backward(x, y, gain, mean, rstd)
        ctx.groups, ctx.process_group = groups, process_group
        ctx.mark_non_differentiable(mean, var)
        # A view, because torch.compile of torch 2.11 gives no gradient to an output that is kept for the backward pass.
        return y.view_as(y), mean, var

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _mean: None, _var: None) -> Any:
        x, y, gain, mean, rstd = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad_y, y, 0).to(gain.dtype)
        grad_bias = grad.sum((2, 3))
        grad_gain = _by_image(rstd, x) * ((grad * x).sum((2, 3)) - _by_image(mean, x) * grad_bias)
        sums = torch.stack([gain * grad_bias, gain * grad_gain]).unflatten(1, (ctx.groups, -1)).sum(2)
        if ctx.process_group is not None:
            dist.all_reduce(sums, group=ctx.process_group)
        mean_grad, mean_grad_x = (sums / _values_per_channel(x, ctx.groups, ctx.process_group)).unbind()
        slope = -rstd * rstd * mean_grad_x
        level = -rstd * mean_grad - slope * mean
        grad_x = torch.addcmul(_spatial(_by_image(level, x)), x, _spatial(_by_image(slope, x)))
        grad_x.addcmul_(grad, _spatial(gain * _by_image(rstd, x)))
        return grad_x.to(x.dtype), grad_gain, grad_bias, None, None, None


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.device.type == "cpu":
        return torch.batch_norm_update_stats(x, None, None, 0.0)  # a seventh of var_mean's time on channels_last
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return mean, var


def _combined(mean: Tensor, var: Tensor, process_group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Mean and variance over all processes from those of each, without the cancellation of E[x^2] - E[x]^2."""
    gathered = mean.new_zeros(dist.get_world_size(process_group), 2, *mean.shape)
    gathered[dist.get_rank(process_group)] = torch.stack([mean, var])
    dist.all_reduce(gathered, group=process_group)
    means, variances = gathered.unbind(1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def _values_per_channel(x: Tensor, groups: int, process_group: dist.ProcessGroup | None) -> int:
    """How many values of a channel are normalised together."""
    processes = 1 if process_group is None else dist.get_world_size(process_group)
    return processes * x.numel() // (x.shape[1] * groups)


def _by_image(by_group: Tensor, x: Tensor) -> Tensor:
    """[groups, C] -> [B, C], or [1, C] for one group."""
    return by_group if len(by_group) == 1 else by_group.repeat_interleave(len(x) // len(by_group), 0)


def _spatial(per_image: Tensor) -> Tensor:
    return per_image[:, :, None, None]


class GeneratorBlock(nn.Module):
    """Up-sampling residual block, (B, C, H, W) -> (B, C', 2H, 2W), with a learned shortcut (official generator.py)."""

    def __init__(self, channels_in: int, channels_out: int, num_classes: int | None, config: ModelConfig) -> None:
        super().__init__()
        momentum, eps, norm_conv = config.bn_momentum, config.bn_eps, config.sn.g
        norm_cbn = config.sn.cbn and num_classes is not None
        self.bn1 = BatchNormReLU(channels_in, num_classes, momentum=momentum, eps=eps, spectral_norm=norm_cbn)
        self.conv1 = Conv2d(channels_in, channels_out, 3, spectral_norm=norm_conv, resample="up")
        self.bn2 = BatchNormReLU(channels_out, num_classes, momentum=momentum, eps=eps, spectral_norm=norm_cbn)
        self.conv2 = Conv2d(channels_out, channels_out, 3, spectral_norm=norm_conv)
        self.shortcut = Conv2d(channels_in, channels_out, 1, spectral_norm=norm_conv)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h: Tensor = self.conv1(self.bn1(x, labels))
        h = self.conv2(self.bn2(h, labels))
        # A 1x1 convolution commutes with nearest upsampling: a quarter of its work.
        skip = self.shortcut(x)
        with autocast(skip.device, "fp32"):  # off: autocast would interpolate, and all that follows, in float32
            return h + F.interpolate(skip, scale_factor=2.0, mode="nearest")


class DiscriminatorBlock(nn.Module):
    """Residual block of D, (B, C, H, W) -> (B, C', H/2, W/2) when `down`; hidden width C' (official discriminator.py).

    `first`: the optimised block at the image, which has no ReLU before its first convolution.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, down: bool, first: bool = False, spectral_norm: bool
    ) -> None:
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = Conv2d(channels_in, channels_out, 3, spectral_norm=spectral_norm)
        resample: Resample = "down" if down else "none"
        self.conv2 = Conv2d(channels_out, channels_out, 3, spectral_norm=spectral_norm, resample=resample)
        learned = down or channels_in != channels_out
        self.shortcut = Conv2d(channels_in, channels_out, 1, spectral_norm=spectral_norm) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        # The shortcut reads x, so the first ReLU must not be in place; the second may.
        h: Tensor = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu_(h))
        # A 1x1 convolution commutes with average pooling: a quarter of its work.
        skip = F.avg_pool2d(x, 2) if self.down else x
        return h + (self.shortcut(skip) if self.shortcut is not None else skip)
