"""The same samples scored on the card and on the CPU: metrics to a thousandth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from card import CPU, DEVICE, on_the_card
from torch import Tensor

from sagan.config import Config, override
from sagan.data import ImageDataset, embedded
from sagan.generator_file import load_generator, save_generator
from sagan.metrics.evaluation import Evaluator
from sagan.metrics.extractor import load_extractor
from sagan.metrics.features import Features, extract
from sagan.metrics.frechet import frechet_distance_few
from sagan.metrics.pairs import between, within
from sagan.networks import Generator
from sagan.sampling import Sampler

SAMPLES = 300  # more than the 128 features of the built-in extractor: no covariance is singular
FEW = 8  # for Inception, which takes some tenths of a second an image on a core


def pictures(n: int, seed: int) -> ImageDataset:
    labels = torch.arange(n) % len(embedded.CLASSES)
    images = embedded.draw(labels, seed, 32)
    return ImageDataset("embedded", images, labels, embedded.CLASSES, embedded.GROUPS, f"{n} of seed {seed}")


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return override(tiny, {"eval.num_samples": SAMPLES, "eval.bn": "standing"})


@pytest.fixture(scope="module")
def generator_file(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained generator with the batch-norm statistics of its noise: its pictures vary with z and with class."""
    file = tmp_path_factory.mktemp("generator") / "generator.safetensors"
    generator = Generator(config.model, config.data.resolution, len(embedded.CLASSES))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    Sampler(config, len(embedded.CLASSES), 0, CPU).prepare(generator)
    save_generator(file, generator, config, embedded.CLASSES)
    return file


def painted(config: Config, file: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """Its samples in fp32, and their labels."""
    generator, classes = load_generator(file, device)
    sampler = Sampler(config, len(classes), 0, device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat([batch.cpu() for batch in sampler.images(generator)]), sampler.labels


@pytest.fixture(scope="module")
def samples(config: Config, generator_file: Path) -> tuple[Tensor, Tensor]:
    return painted(config, generator_file, CPU)


def test_a_generator_file_paints_the_same_pictures_on_both(
    config: Config, generator_file: Path, samples: tuple[Tensor, Tensor]
) -> None:
    """A value that rounding moves across the middle between two of the 256 levels is one level off."""
    with on_the_card():
        images, _ = painted(config, generator_file, DEVICE)
    off = (images.int() - samples[0].int()).abs()
    assert off.max() <= 1 and off.float().mean() < 1e-3
    assert images.float().std(0).mean() > 10, "pictures that are all the same would show nothing"


def test_metrics_of_the_built_in_extractor(config: Config, samples: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """All of them, each device with a reference of its own."""
    images, labels = samples

    def scores(device: torch.device, name: str) -> dict[str, float]:
        evaluate = Evaluator(pictures(600, 3), config.eval, device=device, cache_dir=tmp_path / name)
        return evaluate(images.split(50), labels)

    with on_the_card():
        found = scores(DEVICE, "card")
    wanted = scores(CPU, "cpu")
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert len(wanted) > 20 and wanted["fid"] > 1


def test_metrics_of_inception_with_random_weights(samples: tuple[Tensor, Tensor], random_inception: Path) -> None:
    """Of so few images that covariances of 2048 features have rank 7. The Fréchet distance is therefore taken from
    the features themselves, by the nuclear norm of an 8 x 8 product, which needs no root of a singular matrix."""
    images, labels = samples[0][:FEW], samples[1][:FEW]
    real = pictures(FEW, 3)

    def scores(device: torch.device) -> dict[str, float]:
        extractor = load_extractor("inception", device=device, inception_weights=random_inception)
        ours, theirs = (extract(extractor, [shown], labels, device) for shown in (images, real.images))
        pairs = between(ours.features, theirs.features, within(theirs.features))
        return {
            "fid": frechet_distance_few(theirs.features, ours.features),
            "fid_local": frechet_distance_few(theirs.local, ours.local),
            "kid": pairs["kid"],
            "largest logit": float(ours.logits.max(1).values.mean()),
            "density": pairs["density"],
            "spread": spread(ours),
        }

    with on_the_card():
        found = scores(DEVICE)
    wanted = scores(CPU)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted["spread"] > 0.01, "features that do not depend on the image would show nothing"


def spread(features: Features) -> float:
    """Of a feature over the images, as a share of its size."""
    return float(features.features.std(0).mean() / features.features.abs().mean())
