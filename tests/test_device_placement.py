"""The forward passes of a step with all weights on a GPU, computed by nobody: no tensor stays behind on the CPU.

Fake tensors know their shape, type and device, and torch's own rules say which operations may mix devices. The
backward pass cannot be had so: autograd asks the device for a stream.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ablations.study import read_study
from sagan.augmentation import NUM_DRAWS
from sagan.config import Config, flatten, override
from sagan.device import autocast
from sagan.networks import Discriminator, Generator
from sagan.passes import discriminator_pass, generator_pass

CARD = torch.device("cuda", 0)
STUDIES = sorted((Path(__file__).parents[1] / "studies").rglob("*.yaml"))
PRESET = "imagenet128"  # every variant of every study can be built
BATCH = 8
FAKE = FakeTensorMode()
# Numbers that shapes and values alone depend on: variants which differ in these only have the same operations.
NUMBERS = {
    *("model.width_g", "model.width_d", "model.z_dim", "model.init", "model.sn.eps"),
    *("model.bn_eps", "model.bn_momentum", "model.final_bn_momentum"),
    *("model.attention.key_ratio", "model.attention.value_ratio", "model.attention.gamma"),
}


def structure(config: Config) -> Config:
    """The config with the same operations on the smallest images, and with defaults for these NUMBERS."""
    model = {name: value for name, value in flatten(config).items() if name.startswith("model.")}
    model = {name: value for name, value in model.items() if name not in NUMBERS}
    of_sizes = (override(Config(), {**model, "data.resolution": size}) for size in (32, 64, 128))
    return next(sized for sized in of_sizes if sized.build_error() is None)


def structures() -> dict[str, Config]:
    """{"attention_position/feat32": config}: one name for all variants of all studies that are built alike."""
    found: dict[Config, str] = {}
    for path in STUDIES:
        for variant in read_study(path, PRESET, {}).with_all_trials().variants():
            if variant.build_error is None:
                found.setdefault(structure(variant.config), f"{path.stem}/{variant.name}")
    return {name: config for config, name in found.items()}


STRUCTURES = structures()


@pytest.fixture(autouse=True)
def cuda_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on although there is no card, where torch would leave it off with a warning."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)


def moved(network: nn.Module) -> None:
    """Fake parameters and buffers on the card, and nothing else: what `Module.to` would move."""
    for module in network.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    on_card = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CARD)
                    kind[name] = nn.Parameter(on_card) if isinstance(tensor, nn.Parameter) else on_card


def networks(config: Config) -> tuple[Generator, Discriminator]:
    with torch.device("meta"):
        size = config.data.resolution
        generator, discriminator = Generator(config.model, size, 3), Discriminator(config.model, size, 3)
    with FAKE:
        moved(generator)
        moved(discriminator)
    generator.split_batch_norm(config.model.bn_groups, None)
    return generator, discriminator


def passed(config: Config, precision: str, generator: Generator, discriminator: Discriminator) -> list[Tensor]:
    """What both passes of a step return."""
    size = config.data.resolution
    with FAKE:
        real = torch.empty(BATCH, 3, size, size, dtype=torch.uint8, device=CARD)
        z, labels = torch.empty(BATCH, config.model.z_dim, device=CARD), torch.empty(BATCH, device=CARD).long()
        draws = torch.empty(BATCH, NUM_DRAWS, device=CARD)
        with autocast(CARD, precision):  # type: ignore[arg-type]
            outputs_d = discriminator_pass(
                config, generator, discriminator, real, labels, z, labels, draws.repeat(2, 1)
            )
        with autocast(CARD, precision):  # type: ignore[arg-type]
            return [*outputs_d, *generator_pass(config, generator, discriminator, z, labels, draws)]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Also those that are neither parameters nor buffers."""
    return {
        f"{path}.{name}": value
        for path, module in network.named_modules()
        for name, value in {**module._parameters, **module._buffers, **vars(module)}.items()
        if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("name", STRUCTURES)
def test_no_tensor_of_a_step_stays_behind_on_the_cpu(name: str) -> None:
    """In bf16 autocast, whose blocks hand on bf16: no operation on the way takes float32 for a type of its own."""
    config = STRUCTURES[name]
    both = networks(config)
    handed_on: dict[str, torch.dtype] = {}
    for letter, network in zip("GD", both, strict=True):
        for path, module in network.named_modules():
            if path.rpartition(".")[0] in ("blocks", "attention"):
                key = f"{letter}.{path}"
                module.register_forward_hook(lambda *at, key=key: handed_on.update({key: at[2].dtype}))
    for output in passed(config, "bf16", *both):
        assert output.device == CARD and output.dtype == torch.float32
    assert set(handed_on.values()) == {torch.bfloat16}, handed_on
    for network in both:
        assert {tensor.device for tensor in tensors_of(network).values()} == {CARD}


def test_the_passes_run_in_fp32_on_a_gpu() -> None:
    config = override(STRUCTURES["attention_block/official"], {"data.augment": ["color", "translation", "cutout"]})
    assert {(output.device, output.dtype) for output in passed(config, "fp32", *networks(config))} == {
        (CARD, torch.float32)
    }


@pytest.mark.parametrize("where", ["blocks.0.bn1.running_mean", "blocks.0.conv1.spread", "bn.gain.weight"])
def test_a_tensor_that_is_left_on_the_cpu_is_noticed(where: str) -> None:
    """That the test above can fail. (Autocast rounds what is on the GPU alone: then types differ, too.)"""
    config = STRUCTURES["attention_position/none"]
    generator, discriminator = networks(config)
    path, _, name = where.rpartition(".")
    module = generator.get_submodule(path)
    with FAKE:
        left = torch.empty_like(getattr(module, name), device="cpu")
        setattr(module, name, nn.Parameter(left) if name == "weight" else left)
    with pytest.raises(RuntimeError, match="[Dd]evice|scalar type"):
        passed(config, "bf16", generator, discriminator)


def test_a_number_that_is_left_on_the_cpu_is_noticed() -> None:
    """Operations on a GPU may take a tensor of no dimensions from the CPU, and then wait for its copy."""
    generator, _ = networks(STRUCTURES["attention_block/official"])
    with mock.patch.object(generator, "left", torch.empty(()), create=True):
        assert {tensor.device.type for tensor in tensors_of(generator).values()} == {"cuda", "cpu"}
