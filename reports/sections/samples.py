"""What the networks draw and look at: sample grids, samples over training, attention maps."""

from __future__ import annotations

import re
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb

from reports import figures, format, style
from reports.figures import Drawn
from reports.paper import published
from reports.results import ENDED_EARLY, Picture, Results

QUERY_COLOURS = ("#e6550d", "#00b894", "#3d9bff", "#ffd23f")
MOST_VARIANTS = 9  # rows of `stages` that fit a page


def samples(results: Results) -> Iterator[Drawn]:
    """The same z and labels in every variant, so that only the network differs."""
    for picture in _last_pictures(results, "samples"):
        image = plt.imread(picture.path)
        height, width = image.shape[:2]
        rows = height // picture.tile_px if picture.tile_px else len(results.classes)
        fig, axes = figures.new_axes(height=0.3 + 2.75 * height / width)
        axes.imshow(image)
        figures.bare(axes)
        if rows == len(results.classes):
            axes.set_yticks((np.arange(rows) + 0.5) * height / rows - 0.5, results.classes)
        axes.tick_params(length=0)
        of_cell = (results.cells["variant"] == picture.variant) & (results.cells["seed"] == picture.seed)
        value = results.final_scores[of_cell].get(results.metric, pd.Series(dtype=float)).dropna()
        text = picture.variant
        if len(value):
            size = float(value.to_numpy()[0])
            text += f"   {results.label()} {format.number(size, format.decimals([size]))}"
        axes.set_title(text, loc="left", color=figures.variant_styles(results)[picture.variant].colour)
        caption = f"{picture.variant}, one seed ({picture.seed}), step {picture.step:,}; same z in every variant."
        yield Drawn(f"samples_{picture.variant}", caption, fig)


def stages(results: Results) -> Iterator[Drawn]:
    """The paper's Figure 4: one row per variant, samples at steps spread over the run, each with its score beneath."""
    taken = _one_seed(results, "samples")
    steps = sorted({picture.step for picture in taken})
    rows = [item.name for item in results.variants if any(picture.variant == item.name for picture in taken)]
    if len(steps) < 2 or len(rows) > MOST_VARIANTS:
        return
    chosen = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(4, len(steps)))]
    at = {(picture.variant, picture.step): picture for picture in taken}
    seed = taken[0].seed
    history = results.history(results.metric)
    history = history[history["seed"] == seed]
    scores = dict(zip(zip(history["variant"], history["step"], strict=True), history["value"], strict=True))
    digits = format.decimals([scores[key] for key in at if key in scores and key[1] in chosen])
    height = 0.15 + len(rows) * (style.COLUMN / len(chosen) + 0.1)
    fig, panels = plt.subplots(len(rows), len(chosen), squeeze=False, figsize=(style.COLUMN, height))
    for name, line in zip(rows, panels, strict=True):
        folded = re.sub(r"(.{8,}?[_+])", r"\1\n", name, count=1) if len(name) > 16 else name
        line[0].set_ylabel(folded, color=figures.variant_styles(results)[name].colour)
        for step, axes in zip(chosen, line, strict=True):
            picture, score = at.get((name, step)), scores.get((name, step))
            if picture is None:  # how the run ended
                cells = results.of(name)
                cell = cells[cells["seed"] == seed].iloc[0]
                ended = cell["state"] in ENDED_EARLY and cell["step"] < step
                text = f"{cell['state']}\nat {int(cell['step']):,}" if ended else "no picture"
                axes.text(0.5, 0.5, text, ha="center", va="center", color="#5f6670", transform=axes.transAxes)
                axes.set_box_aspect(1)
                continue
            axes.imshow(_few_tiles(plt.imread(picture.path), picture.tile_px, len(results.classes)))
            axes.set_xlabel("" if score is None else format.number(score, digits), labelpad=2)
    for axes, step in zip(panels[0], chosen, strict=True):
        axes.set_title(f"step {step:,}", fontsize=7, pad=3)
    for axes in panels.ravel():
        figures.bare(axes)
    caption = (
        f"Samples at steps of the run, {results.label()} beneath; one seed ({seed}), same z and labels everywhere."
    )
    if results.paper == "figure3":
        records, theirs = published("figure4"), dict[str, list[str]]()
        for record in records:
            theirs.setdefault(record.variant, []).append(f"{record.value:g} at {(record.step or 0) // 1000}k")
        listed = "; ".join(f"{name} {', '.join(values)}" for name, values in theirs.items())
        caption += f" The paper's Figure 4, FID on {records[0].dataset}: {listed}."
    yield Drawn("stages", caption, fig)


def _few_tiles(image: np.ndarray, tile: int | None, classes: int) -> np.ndarray:
    """Three tiles of three classes spread over all, from a grid with one row per class."""
    tile = tile or image.shape[0] // classes
    rows, columns = image.shape[0] // tile, min(3, image.shape[1] // tile)
    kept = sorted({round(place) for place in np.linspace(0, rows - 1, 3)})
    return np.concatenate([image[row * tile : (row + 1) * tile, : columns * tile] for row in kept])


def attention(results: Results) -> Iterator[Drawn]:
    """The paper's Figure 5: what a query point looks at in G's last attention layer, its map of weights over the keys.

    The map is coarser than the queries where keys are pooled.
    """
    last: dict[str, Picture] = {}
    for picture in _last_pictures(results, "attention"):
        if _side(picture) > (_side(last[picture.variant]) if picture.variant in last else 0):
            last[picture.variant] = picture
    for picture in last.values():
        with np.load(picture.path, allow_pickle=False) as arrays:
            images, queries, maps = arrays["images"], arrays["queries"], arrays["maps"]
        side = _side(picture)
        chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), 4)).round().astype(int))
        count = min(len(queries), len(QUERY_COLOURS))
        size = (style.COLUMN, 0.25 + style.COLUMN * len(chosen) / (count + 1))
        fig, panels = plt.subplots(len(chosen), count + 1, squeeze=False, figsize=size)
        for image, weights, axes in zip(images[chosen], maps[chosen], panels, strict=True):
            _attention_row(axes, image, queries[:count], weights, side)
        title = f"{picture.variant}   {picture.name[:1].upper()} at {side} × {side}"
        fig.suptitle(
            title, x=0.01, ha="left", fontsize=8, color=figures.variant_styles(results)[picture.variant].colour
        )
        caption = (
            f"{picture.variant}, seed {picture.seed}, step {picture.step:,}: query points on the sample, then what "
            f"each looks at, framed in its colour: weights over {maps.shape[-2]} × {maps.shape[-1]} keys."
        )
        yield Drawn(f"attention_{picture.variant}_{picture.name}", caption, fig)


def _attention_row(axes: np.ndarray, image: np.ndarray, queries: np.ndarray, maps: np.ndarray, side: int) -> None:
    """One sample: the image with its query points, then the image in grey under each point's map, in its frame."""
    height, width = image.shape[:2]
    box = (-0.5, width - 0.5, height - 0.5, -0.5)
    for panel in axes:
        figures.bare(panel)
    axes[0].imshow(image)
    grey = 0.35 * image.mean(axis=2) / 255
    for panel, (row, column), weights, colour in zip(axes[1:], queries, maps, QUERY_COLOURS, strict=False):
        spot = ((column + 0.5) * width / side - 0.5, (row + 0.5) * height / side - 0.5)
        axes[0].plot(*spot, "o", color=colour, ms=5, mec="white", mew=0.8)
        panel.imshow(grey, cmap="gray", vmin=0, vmax=1)
        veil = np.zeros((*weights.shape, 4))
        veil[..., :3] = to_rgb(colour)
        veil[..., 3] = 0.9 * weights / max(float(weights.max()), 1e-12)
        panel.imshow(veil, extent=box, interpolation="nearest")
        panel.plot(*spot, "o", color=colour, ms=3.5, mec="white", mew=0.7)
        panel.spines[:].set(visible=True, color=colour, linewidth=2)


def _side(picture: Picture) -> int:
    """Of the query grid: 32 for the map named "g32"; 0 for a name without a number."""
    found = re.search(r"\d+", picture.name)
    return int(found.group()) if found else 0


def _last_pictures(results: Results, kind: str) -> list[Picture]:
    """The last picture of each variant (and map), all of one seed."""
    last = {(picture.variant, picture.name): picture for picture in _one_seed(results, kind)}
    order = [item.name for item in results.variants]
    return sorted(last.values(), key=lambda item: (order.index(item.variant), item.name))


def _one_seed(results: Results, kind: str) -> list[Picture]:
    """The pictures of the seed that most variants have, by step."""
    pictures = [picture for picture in results.pictures if picture.kind == kind]
    if not pictures:
        return []
    variants_of = {seed: {item.variant for item in pictures if item.seed == seed} for seed in results.seeds}
    seed = max(results.seeds, key=lambda seed: (len(variants_of[seed]), -seed))
    return sorted((picture for picture in pictures if picture.seed == seed), key=lambda item: item.step)
