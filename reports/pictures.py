"""What the networks draw and look at: the figures made of images."""

from __future__ import annotations

import re
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb

from reports import style
from reports.figures import Drawn, colours, figure, new_axes
from reports.unit import Picture, Unit

QUERY_COLOURS = ("#ff4d4d", "#3ddc84", "#4da3ff", "#ffd23f")


@figure("Samples")
def samples(unit: Unit) -> Iterator[Drawn]:
    """The same z and labels in every variant, so that only the network differs."""
    for picture in _last_pictures(unit, "samples"):
        image = plt.imread(picture.path)
        height, width = image.shape[:2]
        rows = height // picture.tile_px if picture.tile_px else len(unit.classes)
        fig, axes = new_axes(height=0.3 + 2.75 * height / width)
        axes.imshow(image)
        axes.grid(visible=False)
        axes.set_xticks([])
        if rows == len(unit.classes):
            axes.set_yticks((np.arange(rows) + 0.5) * height / rows - 0.5, unit.classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        score = unit.finals.loc[unit.cells["run_id"].notna() & (unit.cells["variant"] == picture.variant)
                                & (unit.cells["seed"] == picture.seed)]  # fmt: skip
        value = score["fid"].dropna() if "fid" in score else pd.Series(dtype=float)
        text = picture.variant
        if len(value):
            size = float(value.to_numpy()[0])
            text += f"   {style.label('fid', unit.fingerprint)} {style.number(size, style.decimals([size]))}"
        axes.set_title(text, loc="left", color=colours(unit)[picture.variant])
        caption = f"{picture.variant}, seed {picture.seed}, step {picture.step:,}; same z in every variant."
        yield Drawn(f"samples_{_slug(picture.variant)}", caption, fig)


@figure("Attention")
def attention(unit: Unit) -> Iterator[Drawn]:
    """What a query point looks at: its map of weights over the keys, coarser than the queries where keys are pooled."""
    for picture in _last_pictures(unit, "attention"):
        with np.load(picture.path, allow_pickle=False) as arrays:
            images, queries, maps = arrays["images"], arrays["queries"], arrays["maps"]
        grid = re.search(r"\d+", picture.name)
        if grid is None:
            continue
        rows, columns = min(len(images), 4), min(len(queries), len(QUERY_COLOURS), 4)
        size = (style.COLUMN, 0.3 + style.COLUMN * rows / (columns + 1))
        fig, panels = plt.subplots(rows, columns + 1, squeeze=False, figsize=size)
        for image, weights, axes in zip(images, maps, panels, strict=False):
            _attention_row(axes, image, queries[:columns], weights, int(grid.group()))
        network = f"{picture.name[:1].upper()} at {grid.group()} × {grid.group()}"
        title = f"{picture.variant}   {network}"
        fig.suptitle(title, x=0.01, ha="left", fontsize=8, color=colours(unit)[picture.variant])
        caption = (
            f"{picture.variant}, seed {picture.seed}, step {picture.step:,}: query points on the sample, then each "
            f"point's weights over the {maps.shape[-2]} × {maps.shape[-1]} keys, in its colour; brightest is largest."
        )
        yield Drawn(f"attention_{_slug(picture.variant)}_{picture.name}", caption, fig)


def _last_pictures(unit: Unit, kind: str) -> list[Picture]:
    """The last picture of each variant (and map), all of the seed that most variants have."""
    pictures = [picture for picture in unit.pictures if picture.kind == kind]
    if not pictures:
        return []
    variants_of = {seed: {item.variant for item in pictures if item.seed == seed} for seed in unit.seeds}
    seed = max(unit.seeds, key=lambda seed: (len(variants_of[seed]), -seed))
    last: dict[tuple[str, str], Picture] = {}
    for picture in sorted(pictures, key=lambda item: item.step):
        if picture.seed == seed:
            last[picture.variant, picture.name] = picture
    order = [item.name for item in unit.variants]
    return sorted(last.values(), key=lambda item: (order.index(item.variant), item.name))


def _attention_row(axes: np.ndarray, image: np.ndarray, queries: np.ndarray, maps: np.ndarray, grid: int) -> None:
    """One sample: the image with its query points, then the image dimmed under each point's map."""
    height, width = image.shape[:2]
    box = (-0.5, width - 0.5, height - 0.5, -0.5)
    for panel in axes:
        panel.imshow(image, interpolation="nearest")
        panel.set_axis_off()
    for panel, (row, column), weights, colour in zip(axes[1:], queries, maps, QUERY_COLOURS, strict=False):
        spot = ((column + 0.5) * width / grid - 0.5, (row + 0.5) * height / grid - 0.5)
        axes[0].plot(*spot, "o", color=colour, ms=4.5, mec="black", mew=0.7)
        panel.images[0].set_alpha(0.35)
        panel.set_facecolor("black")
        veil = np.zeros((*weights.shape, 4))
        veil[..., :3] = to_rgb(colour)
        veil[..., 3] = 0.9 * weights / max(float(weights.max()), 1e-12)
        panel.imshow(np.zeros((1, 1, 3)), extent=box, zorder=-1)
        panel.imshow(veil, extent=box, interpolation="nearest")
        panel.plot(*spot, "o", color=colour, ms=3, mec="black", mew=0.6)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)
