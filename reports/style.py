"""How figures look: the colour, marker and line of each variant, and Matplotlib's settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.colors import to_hex, to_rgb

matplotlib.use("agg")

COLUMN = 3.3  # inches, one column of a two-column paper
DPI = 220

# Okabe and Ito 2008, with a violet for their yellow, which is too light for lines: distinguishable without red or
# green cones. The baseline is always the grey.
BASELINE_COLOUR = "#5f6670"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4b2e83", "#000000")
# Colour never carries a variant alone.
MARKERS = "osD^vPXp"
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)), (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class PlotStyle:
    """How a variant is drawn in every figure: a hex colour, and Matplotlib's names of a marker and a line style."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


def variant_styles(variants: Iterable[str], baseline: str) -> dict[str, PlotStyle]:
    """One style per variant, by its place in the plan; more variants than hues also differ by shade and dash."""
    others = [name for name in variants if name != baseline]
    many = len(others) > len(COLOURS)
    hues = COLOURS[:-1] if many else COLOURS  # a shade of black would be the baseline's grey
    found = {baseline: PlotStyle(BASELINE_COLOUR, "o", "-")}
    for place, name in enumerate(others):
        turn, hue = divmod(place, len(hues))
        # Evenly from light (0.45 of the way to white) to dark (0.4 to black); the pure hue where there is one turn.
        shade = 0.45 - 0.85 * turn / ((len(others) - 1) // len(hues)) if many else 0.0
        towards = 1.0 if shade > 0 else 0.0
        red, green, blue = (channel + abs(shade) * (towards - channel) for channel in to_rgb(hues[hue]))
        colour = str(to_hex((red, green, blue)))
        found[name] = PlotStyle(colour, MARKERS[(place + 1) % len(MARKERS)], DASHES[hue] if many else "-")
    return found


@contextmanager
def figure_style(families: Sequence[str] = ("DejaVu Sans",)) -> Iterator[None]:
    """Matplotlib's default settings, not the user's, with these changes: no text under 7 points, no mathtext in names.

    `families` are fonts (`fonts.lettering`): what the first has no glyph for is looked for in the next.
    """
    settings = {
        "font.family": list(families),
        "font.size": 7.5,
        "axes.labelsize": 7.5,
        "axes.titlesize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.edgecolor": "#9aa1ab",
        "axes.labelcolor": "#2b3038",
        "xtick.color": "#4a515b",
        "ytick.color": "#4a515b",
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "axes.formatter.useoffset": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e7e9ed",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.4,
        "axes.prop_cycle": cycler(color=COLOURS),
        "figure.constrained_layout.use": True,
        "savefig.dpi": DPI,
        "pdf.fonttype": 42,  # journals refuse the default Type 3 fonts
        "text.parse_math": False,  # a "$" in a name is a dollar sign
    }
    with plt.style.context(settings, after_reset=True):
        yield
