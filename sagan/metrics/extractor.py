"""Feature extractors by name. `python -m sagan.metrics.extractor train` makes the weights of the small one."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from sagan.config import DataConfig
from sagan.data import ImageDataset, embedded, open_dataset
from sagan.metrics import classifier
from sagan.presets import PRESETS


@dataclass(frozen=True)
class Extractor:
    """A network that maps uint8 [B, 3, H, W] to features [B, d], logits [B, k] and local tokens [B, dl, h, w]."""

    network: nn.Module
    name: str
    sha256: str  # of the weights file
    resize: str  # what it does to the size of the images, in words
    labels: tuple[str, ...] | None  # the classes of its logits, where they are known by name

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, logits, local = self.network(images)
        return features, logits, local


def load_extractor(name: str, *, device: torch.device, inception_weights: Path | None = None) -> Extractor:
    """An extractor in evaluation mode on `device`; ValueError for an unknown name or weights that cannot be had."""
    if name not in EXTRACTORS:
        close = difflib.get_close_matches(name, EXTRACTORS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"eval.extractor: must be one of {', '.join(EXTRACTORS)}, got {name!r}{hint}")
    extractor = EXTRACTORS[name](inception_weights)
    extractor.network.to(device)
    return extractor


def _embedded(_: Path | None) -> Extractor:
    with resources.as_file(resources.files("sagan.metrics") / "weights" / "embedded-v1.safetensors") as file:
        weights = classifier.load(file)
        return Extractor(weights.network, "embedded-v1", _sha256(file), classifier.RESIZE, weights.classes)


def _inception(weights: Path | None) -> Extractor:
    from sagan.metrics.inception import RESIZE, load_inception  # torch-fidelity takes a second to import

    network, file = load_inception(weights)
    return Extractor(network, "inception", _sha256(file), RESIZE, None)


EXTRACTORS: dict[str, Callable[[Path | None], Extractor]] = {"embedded-v1": _embedded, "inception": _inception}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def train(preset: str, out: Path, *, steps: int, seed: int, device: torch.device, data_root: Path | None) -> float:
    """Train the small classifier on a preset's data, write its weights to `out`, return the held-out accuracy."""
    if preset not in PRESETS:
        raise ValueError(f"--preset: must be one of {', '.join(PRESETS)}, got {preset!r}")
    dataset = _training_images(PRESETS[preset].data, data_root)
    order = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[: len(order) // 10], order[len(order) // 10 :]
    network = classifier.train(
        dataset.images[kept], dataset.labels[kept], len(dataset.classes), steps=steps, seed=seed, device=device
    )
    accuracy = classifier.accuracy(network, dataset.images[held_out], dataset.labels[held_out])
    out.parent.mkdir(parents=True, exist_ok=True)
    classifier.save(network, out, classes=dataset.classes, data=dataset.fingerprint, accuracy=accuracy)
    return accuracy


def _training_images(config: DataConfig, root: Path | None) -> ImageDataset:
    """The data set; for the built-in one, pictures of both difficulties that no run trains on or is compared with."""
    dataset = open_dataset(config, root)
    if config.name != "embedded":
        return dataset
    labels = dataset.labels.repeat(2)
    images = torch.cat([embedded.draw(labels, 1, classifier.SIDE, level) for level in ("easy", "hard")])
    content = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]
    return dataclasses.replace(dataset, images=images, labels=labels.repeat(2), fingerprint=content)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagan.metrics.extractor", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("train", help="train the small classifier")
    command.add_argument("--preset", default="embedded", help="whose data to train on (default: %(default)s)")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    command.add_argument("--steps", type=int, default=1500, help="batches of 128 (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    command.add_argument("--data-root", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        accuracy = train(**vars(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"accuracy {accuracy:.2%} on held-out images; wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
