"""Three training steps on the card against the CPU's: the same seed, batches and noise, which come from CPU streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from benchmarks.measure import bare_trainer
from card import CPU, DEVICE, IS_CARD, on_the_card
from rounding import CALM, Named, differences, perturb
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sagan import passes, streams
from sagan.config import Config, override
from sagan.device import autocast
from sagan.training import Trainer

CASES: dict[str, dict[str, Any]] = {
    "projection": {},
    "class head": {"model.conditioning": "auxiliary_classifier"},
    "unconditional": {"model.conditioning": "none"},
    "residual": {"model.attention.kind": "residual"},
    "residual of equal cost": {"model.attention.kind": "residual_flops"},
    "attention without pooling": {
        "model.attention.pool": False,
        "model.attention.value_ratio": 8,
        "model.attention.scale": True,
    },
    "no spectral norm in G": {"model.sn.g": False},
    "no spectral norm in D": {"model.sn.d": False},
    "spectral norm of cBN": {"model.sn.cbn": True},
    "no spectral norm in attention": {"model.sn.attention": False},
    "two groups of batch norm": {"model.bn_groups": 2},
    "R1 and augmented images": {"optim.r1_gamma": 1, "data.augment": ["color", "translation", "cutout"]},
    "two D steps, mirrored images": {"optim.d_steps": 2, "data.h_flip": True},
}
WARM = 4  # steps after which each is the replay of a recorded one
BF16_CASES = ("projection", "residual", "two groups of batch norm")
Step = tuple[Tensor, dict[str, Tensor]]  # losses, and the gradients that the step left, all on the CPU


@pytest.fixture(scope="module")
def calm(tiny: Config) -> Config:
    """The smallest network that has everything, trained so that rounding stays what it is (rounding.py)."""
    return override(tiny, {**CALM, "model.attention.at": [16]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@contextmanager
def in_float64() -> Iterator[None]:
    """All of a step. In float32 a card divides images by 127.5 with another rounding, which some ReLU would notice."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(passes, "to_unit_range", lambda images: images.double() / 127.5 - 1):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def steps(config: Config, folder: Path, *, card: bool, count: int = 3) -> list[Step]:
    """Of a new trainer, on the card or on the CPU."""
    if not card:
        return take(built(config, folder, CPU), count)
    with on_the_card():
        return take(built(config, folder, DEVICE), count)


def built(config: Config, folder: Path, device: torch.device, backend: str | None = None) -> Trainer:
    trainer = bare_trainer(config, folder, device=device, compile_backend=backend)
    perturb(trainer)
    return trainer


def take(trainer: Trainer, count: int = 3) -> list[Step]:
    taken = []
    networks = {"G": trainer.generator, "D": trainer.discriminator}
    for _ in range(count):
        before = trainer.sums.clone()
        trainer._train_step()
        gradients = {
            f"{letter}.{name}": parameter.grad.cpu().clone()
            for letter, network in networks.items()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }
        taken.append(((trainer.sums - before).cpu(), gradients))
    return taken


def gradients(found: Step, wanted: Step) -> Named:
    assert found[1].keys() == wanted[1].keys() and wanted[1]
    return {name: (found[1][name], gradient) for name, gradient in wanted[1].items()}


def assert_equal_to_float32_rounding(found: list[Step], wanted: list[Step]) -> None:
    """Losses of each step to 1e-4 of the largest; gradients to 1e-4 of each tensor's largest, in one step at least.

    Sums of some hundred float32 terms in another order differ by 1e-6 of the largest, and through a dozen layers by
    less than 1e-4; TF32, which has three digits, by more. A ReLU whose input rounds across 0 leaves losses alone, for
    it is continuous, but changes all gradients before it, some by a hundredth. So each tensor's smallest difference in
    the three steps counts, since an error of ours is in all of them; and a flip explains 0.05, no more.
    """
    of_steps = []
    for (losses, _), (wanted_losses, _) in zip(found, wanted, strict=True):
        assert differences({"losses": (losses, wanted_losses)})["losses"] < 1e-4
    for one, other in zip(found, wanted, strict=True):
        of_steps.append(differences(gradients(one, other)))
    for name in of_steps[0]:
        by_step = [of_step[name] for of_step in of_steps]
        assert min(by_step) < 1e-4 and max(by_step) < 0.05, f"{name} differs by {by_step} in the three steps"


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_in_fp32_equal_the_cpus_to_rounding(calm: Config, folder: Path, case: str) -> None:
    config = override(calm, CASES[case])
    assert_equal_to_float32_rounding(steps(config, folder, card=True), steps(config, folder, card=False))


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_in_float64_equal_the_cpus_to_nine_digits(calm: Config, folder: Path, case: str) -> None:
    """No rounding is in the way of a comparison here, and next to no ReLU flips: all tensors in all steps."""
    config = override(calm, CASES[case])
    with in_float64():
        found, wanted = steps(config, folder, card=True), steps(config, folder, card=False)
    for one, other in zip(found, wanted, strict=True):
        for name, difference in differences({"losses": (one[0], other[0]), **gradients(one, other)}).items():
            assert difference < 1e-9, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize("case", BF16_CASES)
def test_bf16_on_the_card_is_near_fp32_on_the_cpu(calm: Config, folder: Path, case: str) -> None:
    """bf16 has three digits: losses agree to a few hundredths, and each network's gradient points the same way."""
    config = override(calm, CASES[case])
    in_bf16 = override(config, {"optim.precision": "bf16"})
    (found,), (wanted,) = steps(in_bf16, folder, card=True, count=1), steps(config, folder, card=False, count=1)
    torch.testing.assert_close(found[0], wanted[0], rtol=0.05, atol=0.05)
    for letter in "GD":
        pairs = [pair for name, pair in gradients(found, wanted).items() if name.startswith(letter)]
        ours, theirs = (torch.cat([gradient.flatten() for gradient in side]) for side in zip(*pairs, strict=True))
        similarity = float(torch.cosine_similarity(ours, theirs, dim=0))
        assert 0.98 < similarity < 1 - 1e-7, "1 would mean that nothing was rounded"


@pytest.mark.parametrize("case", ["projection", "R1 and augmented images", "two D steps, mirrored images"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_equal_those_as_written(calm: Config, folder: Path, case: str, precision: str) -> None:
    """The same kernels on the same numbers. Three steps lead to the recording, and three are replayed."""
    config = override(calm, {**CASES[case], "optim.precision": precision})
    replayed, written = built(config, folder, DEVICE), built(config, folder, DEVICE)
    written.replay = None
    found, wanted = take(replayed, WARM + 2), take(written, WARM + 2)
    if precision == "fp32":
        assert_equal_to_float32_rounding(found[-3:], wanted[-3:])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=0.02, atol=0.02)


compiles_on_a_card_alone = pytest.mark.skipif(not IS_CARD, reason="tests/test_passes.py compiles on a CPU")


@pytest.fixture(scope="module")
def compiled(calm: Config, folder: Path) -> Trainer:
    """Its passes are compiled when it takes its first step: most of the time that these tests take on a card."""
    return built(calm, folder, DEVICE, "inductor")


@pytest.mark.xdist_group("compiled")
@compiles_on_a_card_alone
def test_compiled_steps_in_fp32_equal_those_as_written(calm: Config, folder: Path, compiled: Trainer) -> None:
    assert_equal_to_float32_rounding(take(compiled), take(built(calm, folder, DEVICE)))


@pytest.mark.xdist_group("compiled")
@compiles_on_a_card_alone
def test_compiled_steps_do_not_wait_for_the_card(compiled: Trainer) -> None:
    take(compiled, WARM)
    with no_waiting():
        compiled._train_step()


@compiles_on_a_card_alone
def test_a_compiled_pass_in_bf16_differs_from_the_one_as_written_by_its_rounding_alone(
    calm: Config, folder: Path
) -> None:
    """The pass of D, in which G runs too: compiling both once more would take as long as all other tests."""
    config = override(calm, {"optim.precision": "bf16"})
    found, wanted = (of_discriminator(built(config, folder, DEVICE, backend)) for backend in ("inductor", None))
    torch.testing.assert_close(found[0], wanted[0], rtol=0.02, atol=0.02)
    assert float(torch.cosine_similarity(found[1], wanted[1], dim=0)) > 0.98


def of_discriminator(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """What its pass of the first step logs, and the gradient of all its weights in a row."""
    batch = (*trainer.batches(0), *trainer._noise("noise_d", 0))
    with autocast(trainer.device, trainer.config.optim.precision):
        aim, logged = trainer.discriminator_pass(trainer.config, trainer.generator, trainer.discriminator, *batch)
    found = torch.autograd.grad(aim, list(trainer.discriminator.parameters()))
    return logged, torch.cat([gradient.flatten() for gradient in found])


class _NumbersAreErrors(TorchDispatchMode):
    """Of what waits for a card, a CPU can show this: operations whose result Python has to know."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select")):
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the card raises in here."""
    if not IS_CARD:
        with _NumbersAreErrors():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_noticed() -> None:
    with pytest.raises(RuntimeError), no_waiting():
        torch.ones(1, device=DEVICE).item()


@pytest.mark.parametrize("kept", [True, False], ids=["images on the card", "images streamed"])
def test_a_step_never_waits_for_the_card(calm: Config, folder: Path, kept: bool) -> None:
    """With every switch that adds operations; the second epoch of forty images ends in the last of the steps that are
    watched, whose last batch has the images 78 to 83."""
    every = {
        "model.conditioning": "auxiliary_classifier",
        "model.bn_groups": 2,
        "optim.d_steps": 2,
        "optim.batch_size": 6,
        "data.h_flip": True,
    }
    with mock.patch.object(streams, "_fits", lambda *_: kept):
        trainer = built(override(calm, every), folder, DEVICE)
    take(trainer, WARM)
    with no_waiting():
        for _ in range(3):
            trainer._train_step()
    assert trainer.batches._epoch == 2
