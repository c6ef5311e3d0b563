"""What each metric sees: fresh built-in pictures, damaged in one way each, scored as a generator's samples are.

`python tests/metrics/distortions.py` prints a Markdown table: a row per metric that a damage moves, a column per
damage, and in each cell how far it moves the metric, in units of the metric's sd over training seeds, of the published
runs of the embedded preset that have the present version of `relation_error`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reports import load
from sagan.data import embedded, open_dataset
from sagan.metrics.evaluation import Evaluator
from sagan.metrics.relations import VERSION as RELATIONS_VERSION
from sagan.presets import PRESETS

_FIRST_SEED = 1000  # neither the data set's nor the extractor's
_PRESET = PRESETS["embedded"]
_REDRAWS = 8
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


def dropped_class(images: Tensor, labels: Tensor, draw: torch.Generator, share: float = 1.0) -> Tensor:
    """Pictures of the next class in place of the first one's, in this share of all."""
    source = torch.arange(len(images))
    dropped = (labels == 0) & (source < share * len(images))
    source[dropped] = torch.where(labels == 1)[0][: int(dropped.sum())]
    return images[source]


def collapsed(images: Tensor, labels: Tensor, draw: torch.Generator, classes: int = 1) -> Tensor:
    """One picture in place of all of a class, for the last `classes` of them."""
    found = images.clone()
    for label in labels.unique()[-classes:]:
        rows = torch.where(labels == label)[0]
        found[rows] = images[rows[0]]
    return found


DAMAGES: dict[str, Damage] = {
    "blur 1 px": blur,
    "noise 5 %": noise,
    "patch shuffle": patch_shuffle,
    "dropped class": dropped_class,
    "one class collapsed": collapsed,
    "all classes collapsed": partial(collapsed, classes=len(embedded.CLASSES)),
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
        values, sd = torch.tensor([scores[key] for scores in intact], dtype=torch.float64), sds[key]
        found[key] = {"intact": float(values.mean()), "sd of draws": float(values.std()), "sd of seeds": sd}
        for name, scores in damaged.items():
            if key in scores:
                shift = scores[key] - intact[0][key]
                found[key][name] = math.copysign(math.inf, shift) if shift and not sd else shift / (sd or 1)
    return found


def markdown(found: dict[str, dict[str, float]]) -> str:
    """A row for each metric that some damage moves. How far a shift is beyond 9,999 sds says nothing."""
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = ["| metric | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    for key, row in found.items():
        shifts = {name: f"{value:+.1f}" for name, value in row.items() if name not in _NOT_DAMAGES}
        shifts |= {name: "> 9999" if row[name] > 0 else "< -9999" for name in shifts if abs(row[name]) > 9999}
        if any(row[name] for name in shifts):
            shown = [shifts.get(name) or f"{row[name]:.4g}" for name in columns if name in row]
            lines.append(f"| `{key}` | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        score = Evaluator(open_dataset(_PRESET.data), _PRESET.eval, device=torch.device("cpu"), cache_dir=Path(cache))
        n, cells = _PRESET.eval.num_samples, load(source=_PUBLISHED).cells
        current = cells["metric_fingerprint"].str.contains(f"; relations v{RELATIONS_VERSION};", na=False)
        sds = sds_of_seeds(cells[current])
        found = effects(lambda images, labels: score(images.split(100), labels), n, _REDRAWS, sds)
    print(markdown(found), end="")
