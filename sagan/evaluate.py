"""Score images against a data set: `python -m sagan.evaluate generator.safetensors`, or any program's images with

    python -m sagan.evaluate SAMPLES --preset imagenet128 --data-root DIR --inception-weights FILE

SAMPLES is a generator file, the folder of a run that has ended, a folder of images (one folder for each class, or all
in one), or an .npz as guided-diffusion and BigGAN-PyTorch write it. All metrics are printed, with the fingerprint of
the protocol: figures under different fingerprints are not comparable.

Exit status: 0 scored; 2 bad input, one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from sagan.config import Config, override
from sagan.journal import to_json
from sagan.limits import set_threads
from sagan.options import (
    DEFAULT_CACHE,
    Parser,
    add_machine,
    add_protocol,
    changes_of,
    check_folder,
    check_machine,
    escape_unprintable_output,
    existing,
    preset_of,
)
from sagan.run_folder import GENERATOR

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sagan.data import ImageDataset

_FIELDS = ("data.name", "data.resolution", "data.attribute", "eval.num_samples", "eval.extractor")
_AT_ONCE = 50


@dataclass(frozen=True)
class Scores:
    """Descriptions of the images, the data set and the protocol, and the metrics by name."""

    images: str
    data: str
    fingerprint: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Protocol:
    """How images are scored: the options of the command. `config` is None where the generator's own is taken."""

    config: Config | None
    changes: dict[str, str]
    device: str
    data_root: Path | None
    inception_weights: Path | None
    cache_dir: Path
    seed: int


def main(arguments: Sequence[str] | None = None) -> int:
    escape_unprintable_output()
    options = _parser().parse_args(arguments)
    try:
        path, protocol = _checked(options)
        set_threads(options.threads)
        protocol.cache_dir.mkdir(parents=True, exist_ok=True)
        found = score_generator(path, protocol) if path.suffix == ".safetensors" else score_images(path, protocol)
    except (ValueError, OSError) as error:
        print(f"sagan.evaluate: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({**vars(found), "metrics": to_json(found.metrics)}, indent=1))
        return 0
    for name in ("images", "data", "fingerprint"):
        print(f"{name}: {getattr(found, name)}")
    if not found.fingerprint.startswith("inception@"):
        print("note: the extractor is not Inception, so `fid` and `is` compare under this fingerprint only")
    for name, value in found.metrics.items():
        print(f"{name:<32} {value:.6g}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m sagan.evaluate",
        description="Score a generator, or images of any origin, against a data set.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("samples", type=Path, metavar="SAMPLES", help="generator.safetensors, folder, or .npz")
    add_protocol(parser)
    add("--seed", type=int, default=0, help="of a generator's samples; a run's own seed draws what its training scored")
    add_machine(parser)
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _checked(options: argparse.Namespace) -> tuple[Path, Protocol]:
    """The images to score and the protocol, checked as far as this is possible without torch. Raises ValueError."""
    path: Path = options.samples
    if not path.exists():
        raise ValueError(f"SAMPLES: must be a generator file, a folder or an .npz, got {str(path)!r}; nothing is there")
    if (path / GENERATOR).is_file():
        path = path / GENERATOR
    if path.is_file() and path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"SAMPLES: a file must end in .safetensors or .npz, got {str(path)!r}; or give a folder")
    if options.preset is None and path.suffix != ".safetensors":
        raise ValueError("--preset: must say what images are compared with, got none; write --preset cifar10")
    config = None if options.preset is None else preset_of(options.preset)
    changes = changes_of(options.set)
    for name in changes:
        if name not in _FIELDS:
            raise ValueError(f"--set: must be one of {', '.join(_FIELDS)} here, got {name}; others play no part")
    if config is not None:
        override(config, changes)
    device = options.device or "cpu"
    check_machine(device, options.threads)
    cache_dir = (options.cache_dir or DEFAULT_CACHE).resolve()
    check_folder(cache_dir)
    data_root = existing("--data-root", options.data_root)
    weights = existing("--inception-weights", options.inception_weights)
    return path, Protocol(config, changes, device, data_root, weights, cache_dir, options.seed)


def score_generator(path: Path, protocol: Protocol) -> Scores:
    """Every metric of samples of a generator file, drawn as in training, with the batch-norm statistics of the file.

    With the seed of its run these are the samples of the run's last evaluation. Raises ValueError.
    """
    import torch

    from sagan.device import named_device
    from sagan.generator_file import read_generator
    from sagan.sampling import Sampler
    from sagan.streams import seed_of_streams

    device = named_device(protocol.device)
    torch.backends.cudnn.allow_tf32 = False  # as in training
    generator, own, classes = read_generator(path, device)
    config = override(protocol.config or own, protocol.changes)
    config = replace(config, model=own.model, eval=replace(config.eval, bn=own.eval.bn, endpoint=1))
    if config.data.resolution != own.data.resolution:
        raise ValueError(
            f"data.resolution: must be the generator's, {own.data.resolution}, got {config.data.resolution}; write "
            f"--set data.resolution={own.data.resolution}"
        )
    dataset = _data(config, protocol, own.model.conditioning)
    if dataset.classes != classes:
        raise ValueError(
            f"SAMPLES: the generator's classes must be those of {config.data.name}, got {', '.join(classes[:10])} for "
            f"{', '.join(dataset.classes[:10])}; score it against the data that it was trained on"
        )
    sampler = Sampler(config, len(classes), seed_of_streams(protocol.seed, own.optim.streams), device)
    weights: Literal["raw", "ema"] = "ema" if own.optim.ema_decay else "raw"
    words = f"{config.eval.num_samples:,} drawn by {path}, seed {protocol.seed}"
    return _score(sampler.images(generator), sampler.labels, dataset, config, protocol, device, weights, words)


def score_images(path: Path, protocol: Protocol) -> Scores:
    """Every metric of the images of a folder or an .npz; those by class where the images have labels.

    Raises ValueError.
    """
    from sagan.device import named_device
    from sagan.samples import open_samples

    assert protocol.config is not None, "images have no config of their own"
    device = named_device(protocol.device)
    config = override(protocol.config, protocol.changes)
    dataset = _data(config, protocol, None)
    with tempfile.TemporaryDirectory(dir=protocol.cache_dir) as folder:
        samples = open_samples(path, dataset.classes, config.data.resolution, Path(folder))
        labels = samples.labels
        if labels is None:
            dataset = dataset.conditioned("none")
            labels = samples.rows.new_zeros(len(samples.rows))
        config = replace(config, eval=replace(config.eval, num_samples=len(labels), endpoint=1))
        batches = (samples.images[rows] for rows in samples.rows.split(_AT_ONCE))
        found = _score(batches, labels, dataset, config, protocol, device, None, samples.words)
    # All classes together have another distribution than each class, so `relation_error` is another figure, too.
    return found if samples.labels is not None else replace(found, fingerprint=f"{found.fingerprint}; without labels")


def _data(config: Config, protocol: Protocol, conditioning: str | None) -> ImageDataset:
    """The real images, prepared first if necessary, and with the labels of that conditioning, if it is not None."""
    from sagan.data import open_dataset
    from sagan.data.preparation import prepare_images

    needed = override(config, {"model.conditioning": conditioning or "none"})
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    prepare_images([needed], protocol.data_root, protocol.cache_dir, console)
    dataset = open_dataset(config.data, protocol.data_root, protocol.cache_dir)
    return dataset if conditioning is None else dataset.conditioned(conditioning)


def _score(
    batches: Iterable[Tensor],
    labels: Tensor,
    dataset: ImageDataset,
    config: Config,
    protocol: Protocol,
    device: torch.device,
    weights: Literal["raw", "ema"] | None,
    words: str,
) -> Scores:
    import torch

    from sagan.metrics.evaluation import Evaluator
    from sagan.sampling import diversity
    from sagan.scoring import DIVERSITY_SAMPLES, real_diversity, with_copies

    evaluator = Evaluator(
        dataset,
        config.eval,
        device=device,
        cache_dir=protocol.cache_dir,
        inception_weights=protocol.inception_weights,
        weights=weights,
    )
    first: list[Tensor] = []
    metrics = evaluator(with_copies(batches, first, DIVERSITY_SAMPLES // _AT_ONCE), labels)
    metrics["sample_diversity"] = diversity(torch.cat(first)) / real_diversity(dataset)
    classes = f" in {len(dataset.classes)} classes" if len(dataset.classes) > 1 else ""
    count = f"{len(dataset.labels):,} images{classes}"
    data = f"{dataset.name} at {config.data.resolution} px, {count}, {dataset.fingerprint}"
    return Scores(words, data, evaluator.fingerprint, metrics)


if __name__ == "__main__":
    sys.exit(main())
