import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sagan.layers import BatchNormReLU, Linear
from sagan.spectral_norm import apply_spectral_norm

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def filled(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layer.double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    for name, buffer in layer.named_buffers():
        if name.endswith(("u", "v")):
            nn.init.normal_(buffer, generator=generator)
    return layer


@pytest.mark.parametrize("num_classes", [4, None])
def test_batch_norm_relu_equals_torch_in_value_gradient_and_running_statistics(num_classes: int | None) -> None:
    layer = filled(BatchNormReLU(6, num_classes, momentum=0.1, eps=1e-5))
    layer.running_mean.zero_(), layer.running_var.fill_(1)
    plain = nn.BatchNorm2d(6, affine=False, momentum=0.1, eps=1e-5).double()
    x = torch.randn(8, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(8) % 4
    rows = labels if num_classes else torch.zeros_like(labels)

    def expected() -> torch.Tensor:
        gain, bias = layer.gain.weight[rows], layer.bias.weight[rows]
        return F.relu(plain(x) * gain[:, :, None, None] + bias[:, :, None, None])

    actual, wanted = layer(x, labels), expected()
    torch.testing.assert_close(actual, wanted, **CLOSE)
    torch.testing.assert_close(layer.running_mean, plain.running_mean, **CLOSE)
    torch.testing.assert_close(layer.running_var, plain.running_var, **CLOSE)
    pull = torch.randn_like(wanted)
    inputs = (x, layer.gain.weight, layer.bias.weight)
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    layer.eval(), plain.eval()
    torch.testing.assert_close(layer(x, labels), expected(), **CLOSE)


def test_groups_of_a_batch_are_normalised_as_if_each_were_alone() -> None:
    layer = filled(BatchNormReLU(6, 4, momentum=0.1, eps=1e-5))
    x, labels = torch.randn(12, 6, 4, 4, dtype=torch.float64, requires_grad=True), torch.arange(12) % 4
    inputs, pull = (x, layer.gain.weight, layer.bias.weight), torch.randn(12, 6, 4, 4, dtype=torch.float64)
    outputs, statistics = [], []
    for groups, parts in ((3, [slice(0, 12)]), (1, [slice(0, 4), slice(4, 8), slice(8, 12)])):
        layer.groups, after = groups, []
        ys = []
        for part in parts:
            layer.running_mean.zero_(), layer.running_var.fill_(1)
            ys.append(layer(x[part], labels[part]))
            after.append(torch.stack([layer.running_mean, layer.running_var]))
        outputs.append((torch.cat(ys), *torch.autograd.grad(torch.cat(ys), inputs, pull)))
        statistics.append(torch.stack(after).mean(0))
    torch.testing.assert_close(outputs[0], outputs[1], **CLOSE)
    torch.testing.assert_close(statistics[0], statistics[1], **CLOSE)


def test_spectral_norm_converges_to_the_largest_singular_value() -> None:
    layer = filled(Linear(20, 30, spectral_norm=True))
    for _ in range(200):
        apply_spectral_norm([layer], update=True, eps=1e-12)
    assert torch.linalg.matrix_norm(layer.effective_weight, 2).item() == pytest.approx(1, rel=1e-9)
