"""Inside the networks, over training: the gain of attention, how spread it is, singular values, logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from reports import figures, format
from reports.figures import Drawn
from reports.results import Results

# Name of the figure, how its keys begin, the label of its axis, and its caption.
DIAGNOSTICS = (
    ("gamma", "gamma/", "gain γ", "Gain of the attention branch: 0 is no attention, its sign is arbitrary."),
    ("entropy", "attention_entropy/", "attention entropy", "Entropy of attention over that of uniform weights."),
    ("distance", "attention_distance/", "attention distance", "Mean distance of query and key; a map's side is 1."),
    ("sigma", "sigma_max/", "largest singular value", "Of a network's weights, before spectral norm."),
    ("logits", "logit_", "D's logit", "Mean logit of D on real and on generated images."),
)


def diagnostics(results: Results) -> Iterator[Drawn]:
    """One figure of each kind that the runs have logged."""
    for name, prefix, label, caption in DIAGNOSTICS:
        history = results.histories[
            results.histories["key"].str.startswith(prefix) & results.histories["value"].notna()
        ]
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
