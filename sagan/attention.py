"""Self-attention over a feature map (Zhang et al. 2019, section 3; official non_local.py), and residual controls.

Shape suffixes: B images, C channels, N = H*W queries, M keys (N/4 when pooled), K channels of a key, V of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.config import AttentionConfig, ModelConfig
from sagan.layers import Conv2d


class SelfAttention2d(nn.Module):
    """Self-attention over a feature map: (B, C, H, W) -> the same; the identity while gamma is 0.

    Keys and values are 2x2 max-pooled, values have C/2 channels, scores are not scaled and the four 1x1 convolutions
    have no bias: official non_local.py, where the paper's text has C/8, no pooling and the same convolutions.
    """

    def __init__(self, channels: int, config: AttentionConfig, *, spectral_norm: bool) -> None:
        super().__init__()
        keys, values = _widths(channels, config)
        self.query = Conv2d(channels, keys, 1, spectral_norm=spectral_norm, bias=False)
        self.key = Conv2d(channels, keys, 1, spectral_norm=spectral_norm, bias=False)
        self.value = Conv2d(channels, values, 1, spectral_norm=spectral_norm, bias=False)
        self.out = Conv2d(values, channels, 1, spectral_norm=spectral_norm, bias=False)
        self.gamma = nn.Parameter(torch.tensor(config.gamma))
        self.pool = config.pool
        self.scale = keys**-0.5 if config.scale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        q_BNK, k_BMK = self._queries_and_keys(x)
        v_BMV = _tokens(self._pooled(self.value(x)))
        o_BNV = _attend(q_BNK, k_BMK, v_BMV, self.scale)
        attended = o_BNV.transpose(1, 2).unflatten(2, x.shape[2:])
        return _add_scaled(x, self.gamma, self.out(attended))

    def attention(self, x: Tensor) -> Tensor:
        """The attention of every query over the keys: (B, C, H, W) -> (B, N, M), rows sum to 1."""
        q_BNK, k_BMK = self._queries_and_keys(x)
        return torch.softmax(q_BNK @ k_BMK.transpose(1, 2) * self.scale, dim=2)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _tokens(self.query(x)), _tokens(self._pooled(self.key(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if self.pool else x


class ResidualControl(nn.Module):
    """A local block in place of attention: x + gamma * conv1x1(relu(conv3x3(x))), (B, C, H, W) -> the same.

    The paper compares attention with "residual blocks with the same number of parameters" (Table 1) and does not say
    which. As attention, this one is the identity while gamma is 0 and has no biases; a pixel sees its 3x3 neighbours.

    `units` is its size. A unit is the 2C parameters that attention has for one channel of keys and queries, or of
    values and outputs. A hidden channel of the 3x3 convolution takes five units (9C + C parameters); units that are
    left over become hidden channels of a 1x1 convolution. So from five units on it has exactly 2C * units parameters,
    and as many multiplications per pixel.
    """

    def __init__(self, channels: int, units: int, config: AttentionConfig, *, spectral_norm: bool) -> None:
        super().__init__()
        wide = max(1, units // 5)
        narrow = max(0, units - 5 * wide)
        self.wide = Conv2d(channels, wide, 3, spectral_norm=spectral_norm, bias=False)
        self.narrow = Conv2d(channels, narrow, 1, spectral_norm=spectral_norm, bias=False) if narrow else None
        self.out = Conv2d(wide + narrow, channels, 1, spectral_norm=spectral_norm, bias=False)
        self.gamma = nn.Parameter(torch.tensor(config.gamma))

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(x)
        if self.narrow is not None:
            h = torch.cat([h, self.narrow(x)], dim=1)
        return _add_scaled(x, self.gamma, self.out(F.relu(h)))


def attention_block(channels: int, size: int, model: ModelConfig) -> SelfAttention2d | ResidualControl:
    """The block of `config.kind` for a map of `channels` x `size` x `size`.

    Per pixel, attention has 2C(K + V) multiplications in its convolutions, and M(K + V) with its keys and values.
    """
    config, spectral_norm = model.attention, model.sn.attention
    if config.kind == "self_attention":
        return SelfAttention2d(channels, config, spectral_norm=spectral_norm)
    units = sum(_widths(channels, config))
    if config.kind == "residual_flops":
        keys = size**2 // 4 if config.pool else size**2
        units = round(units * (1 + keys / (2 * channels)))
    return ResidualControl(channels, units, config, spectral_norm=spectral_norm)


def _widths(channels: int, config: AttentionConfig) -> tuple[int, int]:
    """Channels of a key and of a value."""
    return max(config.min_key_channels, channels // config.key_ratio), max(1, channels // config.value_ratio)


def _add_scaled(x: Tensor, gamma: Tensor, branch: Tensor) -> Tensor:
    """x + gamma * branch. Autocast on a GPU would take float32 for all three, as gamma's type is the widest."""
    return torch.addcmul(x, gamma.to(x.dtype), branch)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _attend(q_BNK: Tensor, k_BMK: Tensor, v_BMV: Tensor, scale: float) -> Tensor:
    """softmax(q k' * scale) v by torch's fused kernel, which never stores an N x M matrix.

    It wants q, k and v of equal width; channels of zeros change nothing.
    """
    width = max(q_BNK.shape[2], v_BMV.shape[2])
    q, k, v = (_widened(tokens, width).unsqueeze(1) for tokens in (q_BNK, k_BMK, v_BMV))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[:, 0, :, : v_BMV.shape[2]]


def _widened(tokens: Tensor, width: int) -> Tensor:
    # cost.py counts operations on the meta device; the padding is not the block's own work.
    return tokens if tokens.is_meta else F.pad(tokens, (0, width - tokens.shape[2]))
