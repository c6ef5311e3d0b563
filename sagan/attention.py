"""Self-attention over a feature map (Zhang et al. 2019, section 3; official non_local.py).

Shape suffixes: B images, C channels, N = H*W queries, M keys (N/4 when pooled), K channels of a key, V of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.config import AttentionConfig
from sagan.layers import Conv2d


class SelfAttention2d(nn.Module):
    """Self-attention over a feature map: (B, C, H, W) -> the same; the identity while gamma is 0.

    Keys and values are 2x2 max-pooled, values have C/2 channels, scores are not scaled and the four 1x1 convolutions
    have no bias: official non_local.py, where the paper's text has C/8, no pooling and the same convolutions.
    """

    def __init__(self, channels: int, config: AttentionConfig, *, spectral_norm: bool) -> None:
        super().__init__()
        keys, values = max(1, channels // config.key_ratio), max(1, channels // config.value_ratio)
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
        width = max(q_BNK.shape[2], v_BMV.shape[2])
        # Equal head widths let torch take its fused kernel, which never stores the N x M matrix; zeros change nothing.
        o_BNV = F.scaled_dot_product_attention(
            _widened(q_BNK, width).unsqueeze(1),
            _widened(k_BMK, width).unsqueeze(1),
            _widened(v_BMV, width).unsqueeze(1),
            scale=self.scale,
        )[:, 0, :, : v_BMV.shape[2]]
        attended = o_BNV.transpose(1, 2).unflatten(2, x.shape[2:])
        return torch.addcmul(x, self.gamma, self.out(attended))

    def attention(self, x: Tensor) -> Tensor:
        """The attention of every query over the keys: (B, C, H, W) -> (B, N, M), rows sum to 1."""
        q_BNK, k_BMK = self._queries_and_keys(x)
        return torch.softmax(q_BNK @ k_BMK.transpose(1, 2) * self.scale, dim=2)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _tokens(self.query(x)), _tokens(self._pooled(self.key(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if self.pool else x


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _widened(tokens: Tensor, width: int) -> Tensor:
    return F.pad(tokens, (0, width - tokens.shape[2]))
