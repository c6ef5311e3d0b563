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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from sagan.config import override
from sagan.journal import to_json
from sagan.limits import set_threads
from sagan.options import (
    DEFAULT_CACHE,
    Parser,
    add_shared,
    changes_of,
    check_folder,
    check_machine,
    escape_unprintable_output,
    existing,
    preset_of,
)
from sagan.run_folder import GENERATOR

_FIELDS = ("data.name", "data.resolution", "data.attribute", "eval.num_samples", "eval.extractor")


def main(arguments: Sequence[str] | None = None) -> int:
    escape_unprintable_output()
    about = "Score a generator, or images of any origin, against a data set."
    parser = Parser(prog="python -m sagan.evaluate", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("samples", type=Path, metavar="SAMPLES", help="generator.safetensors, folder, or .npz")
    add_shared(parser)
    add("--seed", type=int, default=0, help="of a generator's samples; a run's own seed draws what its training scored")
    add("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        _check(options)
        set_threads(options.threads)
        options.cache_dir.mkdir(parents=True, exist_ok=True)
        found = _score(options)
    except (ValueError, OSError) as error:
        print(f"sagan.evaluate: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({**found, "metrics": to_json(found["metrics"])}, indent=1))
        return 0
    for name in ("images", "data", "fingerprint"):
        print(f"{name}: {found[name]}")
    if not found["fingerprint"].startswith("inception@"):
        print("note: the extractor is not Inception, so `fid` and `is` compare under this fingerprint only")
    for name, value in found["metrics"].items():
        print(f"{name:<32} {value:.6g}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for mistakes that can be found without torch. Afterwards paths are absolute, `samples` is a
    generator file where it was the folder of a run, `changes` is a dict, and `config` is that of the preset with these
    changes, or None."""
    path: Path = options.samples
    if not path.exists():
        raise ValueError(f"SAMPLES: must be a generator file, a folder or an .npz, got {str(path)!r}; nothing is there")
    if (path / GENERATOR).is_file():
        options.samples = path = path / GENERATOR
    if path.is_file() and path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"SAMPLES: a file must end in .safetensors or .npz, got {str(path)!r}; or give a folder")
    if options.preset is None and path.suffix != ".safetensors":
        raise ValueError("--preset: must say what images are compared with, got none; write --preset cifar10")
    config = None if options.preset is None else preset_of(options.preset)
    options.changes = changes_of(options.set)
    for name in options.changes:
        if name not in _FIELDS:
            raise ValueError(
                f"--set: must be one of {', '.join(_FIELDS)} here, got {name}; other fields do not affect scores"
            )
    options.config = None if config is None else override(config, options.changes)
    options.device = options.device or "cpu"
    check_machine(options.device, options.threads)
    options.cache_dir = (options.cache_dir or DEFAULT_CACHE).resolve()
    check_folder(options.cache_dir)
    options.data_root = existing("--data-root", options.data_root)
    options.inception_weights = existing("--inception-weights", options.inception_weights)


def _score(options: argparse.Namespace) -> dict[str, Any]:
    """Descriptions of the images, the data set and the protocol, and every metric by name. Raises ValueError.

    Samples of a generator file are drawn as in training, with the batch-norm statistics of the file: with the seed of
    its run these are the samples of the run's last evaluation.
    """
    import torch

    from sagan.data import open_dataset
    from sagan.data.preparation import prepare_images
    from sagan.device import named_device
    from sagan.generator_file import read_generator
    from sagan.metrics.evaluation import Evaluator
    from sagan.samples import open_samples
    from sagan.sampling import AT_ONCE, Sampler, diversity
    from sagan.scoring import DIVERSITY_SAMPLES, real_diversity, with_copies
    from sagan.streams import seed_of_streams

    device = named_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # as in training
    config, generator = options.config, None
    if options.samples.suffix == ".safetensors":
        generator, own, classes = read_generator(options.samples, device)
        config = override(options.config or own, options.changes)
        config = replace(config, model=own.model, eval=replace(config.eval, bn=own.eval.bn))
        if config.data.resolution != own.data.resolution:
            raise ValueError(
                f"data.resolution: must be the generator's, {own.data.resolution}, got {config.data.resolution}; write "
                f"--set data.resolution={own.data.resolution}"
            )
    config = replace(config, eval=replace(config.eval, endpoint=1))
    conditioning = "none" if generator is None else own.model.conditioning
    needed = override(config, {"model.conditioning": conditioning})
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    prepare_images([needed], options.data_root, options.cache_dir, console)
    dataset = open_dataset(config.data, options.data_root, options.cache_dir)
    labels: torch.Tensor | None
    weights: Literal["raw", "ema"] | None = None
    with tempfile.TemporaryDirectory(dir=options.cache_dir) as folder:
        if generator is not None:
            dataset = dataset.conditioned(conditioning)
            if dataset.classes != classes:
                raise ValueError(
                    f"SAMPLES: the generator's classes must be those of {config.data.name}, got "
                    f"{', '.join(classes[:10])} for {', '.join(dataset.classes[:10])}; score it against the data that "
                    f"it was trained on"
                )
            sampler = Sampler(config, len(classes), seed_of_streams(options.seed, own.optim.streams), device)
            weights = "ema" if own.optim.ema_decay else "raw"
            batches, labels = sampler.images(generator), sampler.labels
            about = f"{config.eval.num_samples:,} drawn by {options.samples}, seed {options.seed}"
        else:
            images, rows, labels, about = open_samples(
                options.samples, dataset.classes, config.data.resolution, Path(folder)
            )
            config = replace(config, eval=replace(config.eval, num_samples=len(rows)))
            batches = (images[part] for part in rows.split(AT_ONCE))
        without = ""
        if labels is None:
            dataset = dataset.conditioned("none")
            labels = torch.zeros(config.eval.num_samples, dtype=torch.long)
            # All classes together have another distribution than each class, so `relation_error` is another figure.
            without = "; without labels"
        places = {"cache_dir": options.cache_dir, "inception_weights": options.inception_weights}
        evaluator = Evaluator(dataset, config.eval, device, **places, weights=weights)
        first: list[torch.Tensor] = []
        metrics = evaluator(with_copies(batches, first, DIVERSITY_SAMPLES // AT_ONCE), labels)
    metrics["sample_diversity"] = diversity(torch.cat(first)) / real_diversity(dataset)
    of_classes = f" in {len(dataset.classes)} classes" if len(dataset.classes) > 1 else ""
    count = f"{len(dataset.labels):,} images{of_classes}"
    data = f"{dataset.name} at {config.data.resolution} px, {count}, {dataset.fingerprint}"
    return {"images": about, "data": data, "fingerprint": evaluator.fingerprint + without, "metrics": metrics}


if __name__ == "__main__":
    sys.exit(main())
