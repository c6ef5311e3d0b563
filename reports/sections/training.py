"""Curves over training: scores, the paper's Figure 3, and what happens inside the networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports import figures, format, style
from reports.figures import Drawn
from reports.metrics import METRICS
from reports.paper import Published, published
from reports.results import Results

# Name of the figure, how its keys begin, the label of its axis, and its caption.
DIAGNOSTICS = (
    ("gamma", "gamma/", "gain γ", "Gain of the attention branch: 0 is no attention, its sign is arbitrary."),
    ("entropy", "attention_entropy/", "attention entropy", "Entropy of attention over that of uniform weights."),
    ("distance", "attention_distance/", "attention distance", "Mean distance of query and key; a map's side is 1."),
    ("sigma", "sigma_max/", "largest singular value", "Of a network's weights, before spectral norm."),
    ("logits", "logit_", "D's logit", "Mean logit of D on real and on generated images."),
)


def scores(results: Results) -> Iterator[Drawn]:
    """Scores over training, with every seed as a thin line."""
    for key in dict.fromkeys((results.metric, *(key for key, metric in METRICS.items() if metric.as_curve))):
        names = figures.variants_in(results, results.history(key))
        if not names:
            continue
        fig, axes = figures.new_axes(height=2.2, legend=names)
        bands = len(names) <= 6  # more would hide each other
        figures.curves(axes, results, key, bands)
        axes.set_ylabel(results.label(key, arrow=True))
        figures.legend(fig, results, names)
        name = results.label(key)
        caption = f"{name[0].upper()}{name[1:]} while training. Thin: a seed; thick: mean over seeds"
        caption += "; band: lowest to highest seed." if bands else "."
        yield Drawn(f"curve_{key}", f"{caption}{figures.cross_note(results)} {figures.basis(results, key)}", fig)


def figure3(results: Results) -> Iterator[Drawn]:
    """Our IS and FID curves side by side, and on axes of their own what the paper's were."""
    keys = ("is", "fid")
    if results.paper != "figure3" or all(results.history(key).empty for key in keys):
        return
    fig, (ours, theirs) = plt.subplots(2, 2, figsize=(style.COLUMN, 3.7), height_ratios=(1.5, 1))
    for key, axes in zip(keys, ours, strict=True):
        figures.curves(axes, results, key, band=False)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True))
        axes.set_title(results.label(key, arrow=True), loc="left")
    records = [*published("figure3"), *published("figure4")]
    for key, axes in zip(keys, theirs, strict=True):
        _published_points(axes, results, [record for record in records if record.metric == key])
        axes.set_title(f"the paper's {key.upper()}", loc="left")
    figures.legend(fig, results, figures.variants_in(results, results.history("fid")), markers=True)
    caption = (
        f"Above, ours. Thin: a seed; thick: mean over seeds.{figures.cross_note(results)} "
        f"{figures.basis(results, 'fid')} Below, the paper's Figures 3 and 4 on their own axes: {records[0].dataset}, "
        "one run; filled points are printed there, open ones are read off its curves by eye."
    )
    yield Drawn("figure3", caption, fig)


def _published_points(axes: Axes, results: Results, records: list[Published]) -> None:
    """The points of each variant, joined in order of steps; on a logarithmic axis of steps, in thousands."""
    drawn = figures.variant_styles(results)
    for name in dict.fromkeys(record.variant for record in records):
        plot_style = drawn.get(name, style.PlotStyle(style.BASELINE_COLOUR, "x", "-"))
        points = sorted(((record.step or 0) / 1000, record.value, record.certainty) for record in records
                        if record.variant == name)  # fmt: skip
        steps, values, _ = zip(*points, strict=True)
        axes.plot(steps, values, color=plot_style.colour, lw=0.7)
        for step, value, certainty in points:
            axes.plot(step, value, plot_style.marker, color=plot_style.colour, ms=4,
                      mfc=plot_style.colour if certainty == "printed" else "white")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([10, 100, 1000], ["10k", "100k", "1M"])
    axes.set_xlim(7, 1400)
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("generator step")
    if records and records[0].metric == "fid":
        axes.set_yscale("log")
        axes.set_yticks([25, 50, 100, 200], ["25", "50", "100", "200"])
        axes.yaxis.set_minor_formatter("")


def diagnostics(results: Results) -> Iterator[Drawn]:
    """One figure of each kind that the runs have logged."""
    for name, prefix, label, caption in DIAGNOSTICS:
        history = results.histories[results.histories["key"].str.startswith(prefix)].dropna(subset="value")
        if history.empty:
            continue
        names = figures.variants_in(results, history)
        fig, axes = figures.new_axes(height=2.0, legend=names)
        for variant in names:
            for key, lines in history[history["variant"] == variant].groupby("key", sort=False):
                second = str(key).removeprefix(prefix).startswith(("d", "fake"))
                plot_style = replace(figures.variant_styles(results)[variant], dash="--" if second else "-")
                if name == "gamma":  # its sign is arbitrary, so a mean over seeds would say nothing
                    figures.seed_lines(axes, lines, plot_style, set(), thin=False)
                else:
                    figures.curve(axes, lines, plot_style, set(), band=False)
        figures.step_axis(axes)
        axes.set_ylabel(label)
        figures.legend(fig, results, names, dashes=False)
        which = "Solid: real, dashed: fake" if name == "logits" else "Solid: G, dashed: D"
        lines_are = "One line per seed" if name == "gamma" else "Thin: a seed; thick: mean over seeds"
        n = format.span(history.groupby("variant")["seed"].nunique())
        yield Drawn(name, f"{caption} {which}. {lines_are}. n = {n}.", fig)
