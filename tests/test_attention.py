import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sagan.attention import SelfAttention2d, attention_block
from sagan.config import AttentionConfig, ModelConfig, SpectralNormConfig
from sagan.layers import Conv2d
from sagan.networks import num_parameters

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
KINDS = ("self_attention", "residual", "residual_flops")
# Channels and sizes of the maps that carry attention: G and D at width 64 and 128 px, and at width 8 and 64 px.
MAPS = [(1024, 8), (512, 8), (512, 16), (256, 16), (256, 32), (128, 32), (128, 64), (64, 64)]
MAPS += [(64, 8), (32, 8), (32, 16), (16, 16), (16, 32), (8, 32)]
RATIOS = [{}, {"value_ratio": 8, "pool": False}, {"key_ratio": 1, "value_ratio": 1}, {"key_ratio": 4}]
every_map = pytest.mark.parametrize(("channels", "size"), MAPS)
every_ratio = pytest.mark.parametrize("ratios", RATIOS, ids=["official", "paper", "whole", "wide keys"])


def filled(block: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in block.double().parameters():
        nn.init.normal_(parameter, generator=generator)
    return block


def block_of(kind: str, channels: int = 16, size: int = 8, **changes: object) -> nn.Module:
    config = AttentionConfig(kind=kind, **changes)  # type: ignore[arg-type]
    return attention_block(channels, size, ModelConfig(attention=config, sn=SpectralNormConfig(attention=False)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_with_gamma_zero_is_the_identity(kind: str) -> None:
    block = filled(block_of(kind))
    nn.init.zeros_(block.gamma)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("key_ratio", "value_ratio"), [(8, 2), (8, 8), (1, 1)])
def test_attention_equals_softmax_of_scores_times_values(
    pool: bool, scale: bool, key_ratio: int, value_ratio: int
) -> None:
    block = block_of("self_attention", pool=pool, scale=scale, key_ratio=key_ratio, value_ratio=value_ratio)
    filled(block)
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


@pytest.mark.parametrize(("channels", "keys"), [(8, 8), (32, 8), (64, 8), (128, 16)])
def test_keys_and_queries_have_the_least_number_of_channels_that_is_asked_for(channels: int, keys: int) -> None:
    block = SelfAttention2d(channels, AttentionConfig(min_key_channels=8), spectral_norm=False)
    assert block.key.weight.shape[0] == block.query.weight.shape[0] == keys
    assert block.value.weight.shape[0] == channels // 2


def test_a_control_is_a_3x3_a_relu_and_a_1x1_beside_the_identity() -> None:
    block = filled(block_of("residual"))
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    assert block.narrow is None
    hidden = F.relu(F.conv2d(x, block.wide.weight, padding=1))
    torch.testing.assert_close(block(x), x + block.gamma * F.conv2d(hidden, block.out.weight), **CLOSE)


def test_hidden_channels_that_five_does_not_divide_read_their_own_pixel_alone() -> None:
    block = filled(block_of("residual", channels=64, value_ratio=8))  # 16 units: three 3x3 channels and one 1x1
    x = torch.randn(2, 64, 4, 4, dtype=torch.float64)
    kernel = torch.cat([block.wide.weight, F.pad(block.narrow.weight, (1, 1, 1, 1))])
    assert kernel.shape == (4, 64, 3, 3)
    hidden = F.relu(F.conv2d(x, kernel, padding=1))
    torch.testing.assert_close(block(x), x + block.gamma * F.conv2d(hidden, block.out.weight), **CLOSE)


@every_map
@every_ratio
def test_the_residual_control_has_exactly_as_many_parameters_as_attention(
    channels: int, size: int, ratios: dict[str, object]
) -> None:
    with torch.device("meta"):
        attention, control = (block_of(kind, channels, size, **ratios) for kind in KINDS[:2])
    wanted = num_parameters(attention)
    a_3x3_channel = 10 * channels + 1
    assert num_parameters(control) == max(wanted, a_3x3_channel)  # one it has, also where attention is smaller
    assert wanted >= a_3x3_channel or (channels <= 16 and ratios.get("value_ratio") == 8)


@every_map
@every_ratio
def test_the_flops_control_multiplies_as_often_as_attention_with_its_products_over_keys(
    channels: int, size: int, ratios: dict[str, object]
) -> None:
    flops = []
    for kind in ("self_attention", "residual_flops"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            block_of(kind, channels, size, **ratios)(torch.empty(1, channels, size, size))
        flops.append(counter.get_total_flops())
    assert flops[1] == pytest.approx(flops[0], rel=0.02)
