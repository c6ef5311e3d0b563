"""Prepares the images of one config or several before training, and reports what they contain."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sagan.config import Config, DataConfig, digest
from sagan.data import check_labels, list_source, open_dataset
from sagan.data.prepared import open_prepared, prepare
from sagan.metrics.pairs import K_DENSITY
from sagan.scoring import DIVERSITY_SAMPLES, real_diversity


def prepare_images(
    configs: Iterable[Config], data_root: Path | None, cache_dir: Path, console: Console
) -> dict[str, str]:
    """Prepares every data set of `configs` that is not built in, and prints what it contains and what is unusual.

    Returns the fingerprint of the images that each config trains on, by the config's digest. Raises ValueError for
    images that cannot be had, read, kept or scored, or that lack the labels that a config needs.
    """
    list_source.cache_clear()  # files may have changed since this process looked
    fingerprints = {}
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    by_pictures: dict[DataConfig, list[Config]] = {}
    for config in configs:
        if config.data.name != "embedded":
            pictures = DataConfig(config.data.name, config.data.resolution, attribute=config.data.attribute)
            by_pictures.setdefault(pictures, []).append(config)
    for data, same in by_pictures.items():
        source = list_source(data, data_root)
        for config in same:
            check_labels(source.name, bool(source.classes), config.model.conditioning)
        say(source.summary())
        for warning in source.warnings():
            say(f"  warning: {warning}")
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        try:
            with Progress(*columns, console=console) as progress:
                for count in prepare(source, data.resolution, cache_dir):  # nothing, if they were prepared before
                    if not progress.tasks:
                        progress.add_task(f"Preparing {data.name} at {data.resolution} px", total=len(source.labels))
                    progress.update(progress.tasks[0].id, completed=count)
        except OSError as error:
            raise ValueError(f"{source.name}: its images cannot be prepared in {cache_dir}: {error}") from error
        for warning in open_prepared(source, data.resolution, cache_dir).warnings:
            say(f"  warning: {warning}")
        dataset = open_dataset(data, data_root, cache_dir)
        count = len(dataset.labels)
        if count <= K_DENSITY:
            raise ValueError(
                f"{dataset.name}: must be {K_DENSITY + 1} images or more, got {count}; density and coverage are "
                f"measured with the {K_DENSITY} nearest others of each: add images"
            )
        if not real_diversity(dataset):
            raise ValueError(
                f"{dataset.name}: two images or more must differ, but the {min(count, DIVERSITY_SAMPLES):,} that were "
                f"compared are all equal; the diversity of samples is measured relative to real images: add other "
                f"images"
            )
        for config in same:
            fingerprints[digest(config)] = dataset.conditioned(config.model.conditioning).fingerprint
    return fingerprints
