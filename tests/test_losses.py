from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.measure import bare_trainer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.augmentation import augmented
from sagan.config import Config, override
from sagan.losses import auxiliary_d, auxiliary_g, non_saturating_d, non_saturating_g, r1
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


def test_the_non_saturating_losses_are_negative_log_probabilities_of_the_right_answer() -> None:
    real, fake = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_real, of_fake = 1 / (1 + torch.exp(-real)), 1 / (1 + torch.exp(-fake))
    torch.testing.assert_close(non_saturating_d(real, fake), -of_real.log().mean() - (1 - of_fake).log().mean())
    torch.testing.assert_close(non_saturating_g(fake), -of_fake.log().mean())
    sure = torch.tensor([-200.0], requires_grad=True)  # D is sure that it is fake: G's gradient must not vanish
    assert torch.autograd.grad(non_saturating_g(sure), sure)[0] == -1


def test_r1_of_a_quadratic_and_its_gradient_have_the_values_of_the_closed_form() -> None:
    """D(x) = sum of w x^2 / 2 has the gradient w x."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(3, 2, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, 2, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    penalty = r1((w * x.square()).sum((1, 2, 3)) / 2, x)
    torch.testing.assert_close(penalty, (w * x).square().sum() / 5)
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], 2 * w * x.square().sum(0) / 5)


@pytest.fixture
def in_float64() -> Iterator[None]:
    """In float32 a ReLU whose input is rounded across 0, on one processor or another, would move gradients visibly."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "projection": {},
    "class head, with R1": {"model.conditioning": "auxiliary_classifier", "optim.r1_gamma": 10},
    "unconditional": {"model.conditioning": "none"},
    "augmented images": {"data.augment": ["color", "translation", "cutout"]},
    "R1 without spectral norm, augmented": {
        "optim.loss": "non_saturating",
        "optim.r1_gamma": 2,
        "model.sn.d": False,
        "data.augment": ["cutout", "color"],
    },
}


def negative_log_sigmoid(logits: Tensor) -> Tensor:
    """Also of logits whose sigmoid is 0 or 1 to rounding."""
    return torch.logaddexp(torch.zeros_like(logits), -logits)


def by_hand(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    if loss == "hinge":
        return (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
    return negative_log_sigmoid(real).mean() + negative_log_sigmoid(-fake).mean()


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_step_follows_the_gradients_of_the_losses_written_by_hand(
    tiny: Config, tmp_path: Path, objective: str
) -> None:
    """Both networks, every parameter, the class head's among them. R1 is taken from one image after the other."""
    config = override(tiny, {"model.attention.gamma": 0.5, **OBJECTIVES[objective]})
    names, gamma = config.data.augment, config.optim.r1_gamma
    trainer = bare_trainer(config, tmp_path)
    generator, discriminator = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    trainer._train_step()

    def drawn(purpose: str, batches: int) -> list[Tensor | None]:
        draws = trainer._draws(purpose, 0, batches)
        return list(draws[0].chunk(batches)) if draws else [None] * batches

    draws_real, draws_fake = drawn("augment_d", 2)
    real, labels = trainer.batches(0)
    z, fake_labels = trainer._noise("noise_d", 0)
    fake = augmented(generator(z, fake_labels).detach(), draws_fake, names)
    images = to_unit_range(real).double().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        logit_real, class_real = discriminator.logits(augmented(images, draws_real, names), labels, update=True)
        logit_fake, class_fake = discriminator.logits(fake, fake_labels)
        loss_d = by_hand(config.optim.loss, logit_real, logit_fake)
        for index in range(len(images) if gamma else 0):
            (gradient,) = torch.autograd.grad(logit_real[index], images, create_graph=True)
            loss_d += gamma / 2 * gradient.square().sum() / len(images)
        if class_real is not None and class_fake is not None:
            loss_d += negative_log_likelihood(class_real, labels) + negative_log_likelihood(class_fake, fake_labels)
        loss_d.backward()

    z, fake_labels = trainer._noise("noise_g", 0)
    fake = augmented(generator(z, fake_labels), drawn("augment_g", 1)[0], names)
    logits, class_logits = trainer.discriminator.logits(fake, fake_labels)  # D has moved on
    loss_g = -logits.mean() if config.optim.loss == "hinge" else negative_log_sigmoid(logits).mean()
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
    assert any("classifier" in name for name in expected) == ("class head" in objective)
