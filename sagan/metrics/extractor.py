"""Feature extractors by name. `python -m sagan.metrics.extractor train` makes one for a labelled data set."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sagan.config import DataConfig, one_of, override
from sagan.data import ImageDataset, embedded, open_dataset
from sagan.device import named_device
from sagan.limits import set_threads
from sagan.metrics import classifier
from sagan.options import DEFAULT_CACHE, changes_of, preset_of

_TRAIN = "python -m sagan.metrics.extractor train --preset NAME"
_FOLDER = "extractors"  # of the cache


@dataclass(frozen=True)
class Extractor:
    """A network that maps uint8 [B, 3, H, W] to features [B, d], logits [B, k] and local tokens [B, dl, h, w]."""

    network: nn.Module
    name: str
    sha256: str  # of the weights file
    resize: str  # what it does to the size of the images, in words
    labels: tuple[str, ...] | None  # the classes of its logits, where they are known by name

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.network(images)
        return found


def load_extractor(
    name: str, *, device: str | torch.device, cache_dir: Path | None = None, inception_weights: Path | None = None
) -> Extractor:
    """An extractor in evaluation mode on `device`: a built-in one, or one registered in `cache_dir`.

    ValueError for an unknown name, weights that cannot be had, or a registered file that is not what its name says.
    """
    if name == "inception":
        from sagan.metrics.inception import RESIZE, load_inception  # torch-fidelity takes a second to import

        network, file = load_inception(inception_weights)
        return Extractor(network.to(device), name, _sha256(file), RESIZE, None)
    files = sorted((cache_dir / _FOLDER).glob(f"*-{'[0-9a-f]' * 8}.safetensors")) if cache_dir else []
    registered = {file.stem: file for file in files}
    try:
        one_of("eval.extractor", name, ["embedded-v2", "inception", *registered])
    except ValueError as error:
        said = str(error) if str(error).endswith("?") else f"{error};"
        place = f"; one that was trained elsewhere belongs in {cache_dir / _FOLDER}" if cache_dir else ""
        raise ValueError(f"{said} {_TRAIN} trains one on a data set{place}") from None
    file = registered.get(name, Path(__file__).parent / "weights" / "embedded-v2.safetensors")
    digest = _sha256(file)
    if name != "embedded-v2" and digest[:8] != name[-8:]:
        raise ValueError(
            f"eval.extractor: {file} was damaged or exchanged: its SHA-256 begins with {digest[:8]}, not as its name "
            f"says; copy it again from where it was trained, or delete it and train another: {_TRAIN}"
        )
    try:
        trained, classes = classifier.load(file)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise ValueError(
            f"eval.extractor: {file} is no classifier of ours; delete it and train one: {_TRAIN}"
        ) from None
    return Extractor(trained.to(device), name, digest, classifier.RESIZE, classes)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _training_images(config: DataConfig, root: Path | None) -> ImageDataset:
    """The data set; for the built-in one, pictures that no run trains on or is compared with.

    Its further classes are geometry whose relations are broken: features that distinguish these from the real ones
    change when only distant parts disagree; those of a classifier of the data's own classes hardly do.
    """
    dataset = open_dataset(config, root)
    if config.name != "embedded":
        return dataset
    classes, labels = list(dataset.classes), [dataset.labels]
    images = [embedded.draw(dataset.labels, 1, classifier.SIDE)]
    for label in dataset.groups["geometry"]:
        own = dataset.labels[dataset.labels == label]
        for seed, broken in enumerate(embedded.BROKEN, 2):
            images.append(embedded.draw(own, seed, classifier.SIDE, broken))
            labels.append(torch.full_like(own, len(classes)))
            classes.append(f"{dataset.classes[label]} of another {broken}")
    drawn = torch.cat(images)
    content = hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16]
    return replace(dataset, images=drawn, labels=torch.cat(labels), classes=tuple(classes), fingerprint=content)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagan.metrics.extractor", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser(
        "train", help="train a classifier on the data of a preset and register it for eval.extractor"
    )
    add = command.add_argument
    add("--preset", default="embedded", help="whose data to train on (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the preset; repeatable")
    add("--data-root", type=Path, metavar="FOLDER", help="where data sets are")
    add("--steps", type=int, default=1500, help="batches of 128 (default: %(default)s, 23 passes over Imagenette)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the weights there and register nothing")
    options = parser.parse_args(arguments)
    set_threads()
    try:
        if options.steps < 1:
            raise ValueError(f"--steps: must be 1 or more, got {options.steps}")
        config = override(preset_of(options.preset), changes_of(options.set)).data
        device = named_device(options.device)
        dataset = _training_images(config, options.data_root)
        if len(dataset.classes) < 2:
            raise ValueError(
                f"data.name={config.name}: a classifier needs 2 classes or more, got {len(dataset.classes)}; train on "
                f"labelled images of the same kind, or take one of the built-in extractors: embedded-v2, inception"
            )
        order = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(options.seed))
        held_out, rest = order.tensor_split([max(1, len(order) // 10)])
        network = classifier.train(dataset, rest, steps=options.steps, seed=options.seed, device=device)
        batches = (dataset.images[rows] for rows in torch.split(held_out, 256))
        accuracy = classifier.accuracy(network, batches, dataset.labels[held_out], device)
        folder = options.out.parent if options.out else DEFAULT_CACHE / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unnamed:
            written = Path(unnamed) / "weights"
            classifier.save(network.cpu(), dataset.classes, dataset.fingerprint, accuracy, written)
            file = options.out or folder / f"{config.name}-{_sha256(written)[:8]}.safetensors"
            os.replace(written, file)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    done = f"wrote {file}" if options.out else f"score with it: --set eval.extractor={file.stem}"
    print(f"accuracy {accuracy:.2%} on held-out images; {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
