"""What each metric sees: fresh built-in pictures, damaged in one way each, scored as a generator's samples are.

`python tests/metrics/distortions.py` prints a Markdown table: a row per metric that a damage moves, a column per
damage, and in each cell how far it moves the metric, in units of the metric's sd over training seeds, of the published
runs of the embedded preset.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reports import load
from sagan.data import embedded, open_dataset
from sagan.metrics.evaluation import Evaluator
from sagan.presets import PRESETS

_FIRST_SEED = 1000  # neither the data set's nor the extractor's
_PRESET = PRESETS["embedded"]
_REDRAWS = 8
_MANY = 9999  # sds
_PUBLISHED = Path(__file__).parents[2] / "reports" / "published" / "embedded"
_NOT_DAMAGES = ("intact", "sd of draws", "sd of seeds")
Damage = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # uint8 [N, 3, H, W], labels [N]


def blur(images: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
    """A Gaussian of sigma 1 px, cut at 3 px."""
    weights = torch.exp(-torch.arange(-3.0, 4.0).square() / 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, 7)
    across = F.conv2d(F.pad(images.float(), (3, 3, 3, 3), mode="replicate"), weights, groups=3)
    both: Tensor = F.conv2d(across, weights.transpose(2, 3), groups=3)
    return both.round_().to(torch.uint8)


def noise(images: Tensor, labels: Tensor, draw: torch.Generator, deviation: float = 0.05) -> Tensor:
    """Of an sd that is this share of the range."""
    return (images + 255 * deviation * torch.randn(images.shape, generator=draw)).round().clamp(0, 255).to(torch.uint8)


def patch_shuffle(images: Tensor, labels: Tensor, draw: torch.Generator, tiles: int = 2) -> Tensor:
    """The tiles of each picture, `tiles` along each side, in random order."""
    n, _, side, _ = images.shape
    cut = images.reshape(n, 3, tiles, side // tiles, tiles, side // tiles).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(n, tiles * tiles, generator=draw).argsort(1)
    mixed: Tensor = cut[torch.arange(n)[:, None], order].unflatten(1, (tiles, tiles)).permute(0, 3, 1, 4, 2, 5)
    return mixed.reshape(images.shape)


def dropped_class(images: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures of the next class in place of the first one's."""
    source = torch.arange(len(images))
    source[labels == 0] = torch.where(labels == 1)[0][: int((labels == 0).sum())]
    return images[source]


def collapsed_class(images: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
    """One picture in place of all of the last class."""
    return _repeated(images, labels, [int(labels.max())])


def collapsed_classes(images: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
    """One picture per class."""
    return _repeated(images, labels, labels.unique().tolist())


def _repeated(images: Tensor, labels: Tensor, chosen: list[int]) -> Tensor:
    found = images.clone()
    for label in chosen:
        rows = torch.where(labels == label)[0]
        found[rows] = images[rows[0]]
    return found


DAMAGES: dict[str, Damage] = {
    "blur 1 px": blur,
    "noise 5 %": noise,
    "patch shuffle": patch_shuffle,
    "dropped class": dropped_class,
    "one class collapsed": collapsed_class,
    "all classes collapsed": collapsed_classes,
}
_BROKEN: dict[str, Literal["size", "height"]] = {"twins of two sizes": "size", "twins at two heights": "height"}


def sds_of_seeds(cells: pd.DataFrame) -> dict[str, float]:
    """{metric: its sd over training seeds within a variant, pooled over the variants} of finished cells.

    `cells` are those of reports.load. Each run counts once, though several studies may show it. Variants of fewer steps
    are left out.
    """
    cells = cells[(cells["state"] == "finished") & (cells["steps"] == cells["steps"].max())]
    cells = cells.drop_duplicates(["config_digest", "seed"])
    scores = cells.select_dtypes("number").drop(columns=["seed", "step", "steps", "endpoint"])
    variances, n = scores.groupby(cells["config_digest"]).var(), cells.groupby("config_digest").size()
    pooled = variances.mul(n - 1, axis=0).sum(min_count=1) / (n - 1).sum()
    return {str(name): float(value) for name, value in (pooled**0.5).dropna().items()}


def effects(
    evaluate: Callable[[Tensor, Tensor], dict[str, float]], n: int, redraws: int, sds: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """{metric: {"intact": mean, "sd of draws": sd, "sd of seeds": sd, damage: shift}} of the metrics in `sds`.

    `redraws` (2 or more) sets of `n` intact pictures are scored; the first of them is damaged. Shifts are in units of
    `sds`, the sds of seeds; an sd of 0 gives inf.
    """
    data, labels = _PRESET.data, torch.arange(n) % len(embedded.CLASSES)
    sets = [embedded.draw(labels, _FIRST_SEED + i, data.resolution) for i in range(redraws)]
    intact = [evaluate(images, labels) for images in sets]
    damaged = {
        name: evaluate(damage(sets[0], labels, torch.Generator().manual_seed(0)), labels)
        for name, damage in DAMAGES.items()
    }
    for column, broken in _BROKEN.items():
        damaged[column] = evaluate(embedded.draw(labels, _FIRST_SEED, data.resolution, broken), labels)
    found = {}
    for key in [key for key in intact[0] if key in sds]:
        values = torch.tensor([scores[key] for scores in intact], dtype=torch.float64)
        about = float(values.mean()), float(values.std()), sds[key]
        found[key] = dict(zip(_NOT_DAMAGES, about, strict=True)) | {
            name: _in_units(scores[key] - intact[0][key], sds[key]) for name, scores in damaged.items() if key in scores
        }
    return found


def _in_units(shift: float, sd: float) -> float:
    return 0.0 if shift == 0 else shift / sd if sd > 0 else float("inf") if shift > 0 else float("-inf")


def _cell(shift: float) -> str:
    """Far beyond what noise does, how far says nothing."""
    if abs(shift) > _MANY:
        return f"> {_MANY}" if shift > 0 else f"< -{_MANY}"
    return f"{shift:+.1f}"


def markdown(found: dict[str, dict[str, float]]) -> str:
    """A row for each metric that some damage moves."""
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = ["| metric | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    for key, row in found.items():
        if not any(row[name] for name in row if name not in _NOT_DAMAGES):
            continue
        shown = [f"{row[name]:.4g}" if name in _NOT_DAMAGES else _cell(row[name]) for name in columns if name in row]
        lines.append(f"| `{key}` | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        evaluator = Evaluator(
            open_dataset(_PRESET.data), _PRESET.eval, device=torch.device("cpu"), cache_dir=Path(cache)
        )
        found = effects(
            lambda images, labels: evaluator(images.split(100), labels),
            _PRESET.eval.num_samples,
            _REDRAWS,
            sds_of_seeds(load(source=_PUBLISHED).cells),
        )
    print(markdown(found), end="")
