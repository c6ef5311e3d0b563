import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sagan.attention import SelfAttention2d
from sagan.config import AttentionConfig
from sagan.layers import Conv2d

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def filled(block: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in block.double().parameters():
        nn.init.normal_(parameter, generator=generator)
    return block


def attention_block(channels: int = 16, **changes: object) -> SelfAttention2d:
    block = SelfAttention2d(channels, AttentionConfig(**changes), spectral_norm=False)  # type: ignore[arg-type]
    filled(block)
    return block


def test_attention_with_gamma_zero_is_the_identity() -> None:
    block = attention_block()
    nn.init.zeros_(block.gamma)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("key_ratio", "value_ratio"), [(8, 2), (8, 8), (1, 1)])
def test_attention_equals_softmax_of_scores_times_values(
    pool: bool, scale: bool, key_ratio: int, value_ratio: int
) -> None:
    block = attention_block(pool=pool, scale=scale, key_ratio=key_ratio, value_ratio=value_ratio)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)

    def tokens(conv: Conv2d, pooled: bool) -> torch.Tensor:
        y = F.conv2d(x, conv.weight)
        return (F.max_pool2d(y, 2) if pooled else y).flatten(2)

    query, key, value = tokens(block.query, False), tokens(block.key, pool), tokens(block.value, pool)
    scores = torch.bmm(query.transpose(1, 2), key) / (query.shape[1] ** 0.5 if scale else 1)
    weights = torch.softmax(scores, dim=2)
    attended = torch.bmm(value, weights.transpose(1, 2)).view(2, -1, 8, 8)
    torch.testing.assert_close(block(x), x + block.gamma * F.conv2d(attended, block.out.weight), **CLOSE)
    torch.testing.assert_close(block.attention(x), weights, **CLOSE)
    torch.testing.assert_close(block.attention(x).sum(2), torch.ones(2, 64, dtype=torch.float64), **CLOSE)


def test_attention_has_the_parameters_of_the_official_block() -> None:
    """1.25 C^2 for the four convolutions and one gamma."""
    block = SelfAttention2d(64, AttentionConfig(), spectral_norm=True)
    assert sum(parameter.numel() for parameter in block.parameters()) == 1.25 * 64**2 + 1
