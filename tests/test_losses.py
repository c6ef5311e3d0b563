from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.measure import bare_trainer
from torch import Tensor

from sagan.config import Config, override
from sagan.losses import auxiliary_d, auxiliary_g
from sagan.sampling import to_unit_range


def negative_log_likelihood(class_logits: Tensor, labels: Tensor) -> Tensor:
    likelihoods = class_logits.exp() / class_logits.exp().sum(1, keepdim=True)
    return -likelihoods[torch.arange(len(labels)), labels].log().mean()


def test_the_class_losses_are_negative_log_likelihoods_of_real_and_fake_labels() -> None:
    draw = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64)
    a, b = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 2, 1, 0, 0])
    of_fake = negative_log_likelihood(fake, b)
    torch.testing.assert_close(auxiliary_d(real, a, fake, b), negative_log_likelihood(real, a) + of_fake)
    torch.testing.assert_close(auxiliary_g(fake, b), of_fake)


@pytest.fixture
def in_float64() -> Iterator[None]:
    """In float32 a ReLU whose input is rounded across 0, on one processor or another, would move gradients visibly."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("conditioning", ["projection", "auxiliary_classifier", "none"])
def test_a_training_step_follows_the_gradients_of_the_losses_written_by_hand(
    tiny: Config, tmp_path: Path, conditioning: str
) -> None:
    """Both networks, every parameter, the class head's among them."""
    trainer = bare_trainer(override(tiny, {"model.conditioning": conditioning}), tmp_path)
    generator, discriminator = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    trainer._train_step()

    real, labels = trainer.batches(0)
    z, fake_labels = trainer._noise("noise_d", 0)
    fake = generator(z, fake_labels).detach()
    logit_real, class_real = discriminator.judge(to_unit_range(real).double(), labels, update=True)
    logit_fake, class_fake = discriminator.judge(fake, fake_labels)
    loss_d = (1 - logit_real).clamp_min(0).mean() + (1 + logit_fake).clamp_min(0).mean()
    if class_real is not None and class_fake is not None:
        loss_d += negative_log_likelihood(class_real, labels) + negative_log_likelihood(class_fake, fake_labels)
    loss_d.backward()

    z, fake_labels = trainer._noise("noise_g", 0)
    logits, class_logits = trainer.discriminator.judge(generator(z, fake_labels), fake_labels)  # D has moved on
    loss_g = -logits.mean()
    if class_logits is not None:
        loss_g += negative_log_likelihood(class_logits, fake_labels)
    parameters = dict(generator.named_parameters())
    gradients = torch.autograd.grad(loss_g, list(parameters.values()))

    expected = {f"G.{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
    expected |= {f"D.{name}": parameter.grad for name, parameter in discriminator.named_parameters()}
    for letter, network in (("G", trainer.generator), ("D", trainer.discriminator)):
        for name, parameter in network.named_parameters():
            wanted = expected[f"{letter}.{name}"]
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert any("classifier" in name for name in expected) == (conditioning == "auxiliary_classifier")
