"""One look: what a metric is called, how a number is rounded, which colour a variant has."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from fontTools import subset
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgb

matplotlib.use("agg")

COLUMN = 3.3  # inches, one column of a two-column paper
PAGE = 6.9
DPI = 220

# Okabe and Ito 2008, with a violet for their yellow, which is too light for lines: told apart without red or green
# cones. The baseline is always the grey.
BASELINE_COLOUR = "#5f6670"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4b2e83", "#000000")
# Colour never carries a variant alone.
MARKERS = "osD^vPXp"
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)), (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How a variant is drawn in every figure: a hex colour, and Matplotlib's names of a marker and a line style."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class Metric:
    """`lower` is True where lower is better, None where neither is. `scale` multiplies before printing."""

    label: str
    lower: bool | None = None
    scale: float = 1.0


METRICS = {
    "fid": Metric("{fd}", lower=True),
    "fid_extrapolated": Metric("{fd}, extrapolated to infinite samples", lower=True),
    "fid_se": Metric("sampling error of {fd}"),
    "fid_local": Metric("local {fd}", lower=True),
    "relation_error": Metric("relation error", lower=True),
    "relation_correlation": Metric("relation correlation", lower=False),
    "relation_spread": Metric("relation spread (real: 1)"),
    "relation_error_se": Metric("sampling error of the relation error"),
    "relation_floor": Metric("relation error of real against real"),
    "class_diversity": Metric("diversity within classes (real: 1)"),
    "fid_group/geometry": Metric("{fd}, geometry", lower=True),
    "fid_group/texture": Metric("{fd}, texture", lower=True),
    "intra_fid": Metric("intra-{fd}", lower=True),
    "intra_fid_n": Metric("images a class of intra-{fd}, fewest"),
    "kid": Metric("{kd} × 1000", lower=True, scale=1000),
    "is": Metric("{is}", lower=False),
    "is_mean": Metric("{is}, mean over ten splits", lower=False),
    "is_std": Metric("{is}, spread over ten splits"),
    "precision": Metric("precision", lower=False),
    "recall": Metric("recall", lower=False),
    "density": Metric("density", lower=False),
    "coverage": Metric("coverage", lower=False),
    "class_consistency": Metric("class consistency", lower=False),
    "real_floor": Metric("{fd} of real against real"),
    "sample_diversity": Metric("diversity against real"),
    "collapsed_classes": Metric("share of classes that collapsed", lower=True),
    "num_params_g": Metric("parameters of G"),
    "num_params_d": Metric("parameters of D"),
    "flops_per_image": Metric("operations per image, G + D"),
    "best/fid": Metric("{fd}, best of run", lower=True),
    "best/is": Metric("{is}, best of run", lower=False),
    "best/intra_fid": Metric("intra-{fd}, best of run", lower=True),
    "best/step": Metric("step of the best of run"),
    "images_per_sec": Metric("images/s", lower=False),
    "peak_memory_mib": Metric("peak memory, MiB", lower=True),
}


def label(key: str, fingerprint: str, arrow: bool = False) -> str:
    """The heading of a metric, also of one class. Only real Inception features earn the names FID, KID and IS."""
    extractor = extractor_of(fingerprint)
    real = extractor.startswith("inception")
    inception = {"fd": "FID", "kd": "KID", "is": "IS"}
    other = {"fd": f"FD {extractor}", "kd": f"KD {extractor}", "is": f"IS {extractor}"}
    names = inception if real else {key: name.strip() for key, name in other.items()}
    metric = METRICS.get(key)
    if metric is None:
        family, _, name = key.partition("/")
        metric = METRICS.get("fid" if family == "fid_class" else family)
        if metric is None or not name:
            return key.replace("_", " ")
        text = f"{metric.label.format(**names)}, {name}"
    else:
        text = metric.label.format(**names)
    return text + {True: " ↓", False: " ↑", None: ""}[metric.lower] if arrow else text


def lower_is_better(key: str) -> bool | None:
    """None where neither is. A class's or a group's score has the direction of the score that it is named after."""
    metric = METRICS.get(key) or METRICS.get("fid" if key.startswith("fid_class/") else key.partition("/")[0])
    return metric.lower if metric else None


def extractor_of(fingerprint: str) -> str:
    """The first word of "embedded-v1@1a2b3c4d; 2000 samples; ..."."""
    return fingerprint.partition(";")[0].partition("@")[0].strip()


def decimals(values: Iterable[float], digits: int = 3) -> int:
    """Decimals that show so many digits of the smallest value; one number for a whole column keeps it aligned."""
    sizes = [abs(value) for value in values if value]
    return min(4, max(0, digits - 1 - math.floor(math.log10(min(sizes))))) if sizes else 0


def number(value: float, digits: int, signed: bool = False) -> str:
    """Fixed decimals, with a real minus sign: "−1.9", "12,345"."""
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def plus_minus(mean: float, half_width: float | None, digits: int, signed: bool = False) -> str:
    """ "1.9 ± 0.7", or the mean alone where there is no interval."""
    text = number(mean, digits, signed)
    return text if half_width is None else f"{text} ± {number(half_width, digits)}"


def interval(mean: float, low: float | None, high: float | None, digits: int) -> str:
    """ "18.4 (12.1 to 28.0)", or the mean alone where there is no interval."""
    text = number(mean, digits)
    return text if low is None or high is None else f"{text} ({number(low, digits)} to {number(high, digits)})"


def percent(ratio: float, signed: bool = True) -> str:
    """ "−31 %" of a ratio of 0.69; "+250 %", and "x 12" from ten times on, where per cent say little."""
    if ratio >= 10 and signed:
        return f"× {ratio:.3g}"
    share = 100 * (ratio - 1)
    digits = 1 if abs(share) < 9.95 else 0
    return f"{number(share if signed else abs(share), digits, signed)} %"


def count(value: float) -> str:
    """ "1.32 M", "884 k": parameters."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def looks(variants: Iterable[str], baseline: str) -> dict[str, Look]:
    """One look a variant, by its place in the plan.

    More variants than hues are told apart by shade, dash and marker as well. Names of two parts, such as residual8 or
    g1e-4+d4e-4, then share a hue and a dash by their first part, a shade and a marker by their second.
    """
    others = [name for name in variants if name != baseline]
    if len(others) <= len(COLOURS):
        found = [Look(colour, MARKERS[(place + 1) % len(MARKERS)], "-") for place, colour in enumerate(COLOURS)]
    elif parts := _parts(others):
        shades = _shades(1 + max(second for _, second in parts))
        found = [Look(_shaded(COLOURS[first], shades[second]), MARKERS[second], DASHES[first])
                 for first, second in parts]  # fmt: skip
    else:
        hues = COLOURS[:-1]  # a shade of black would be the baseline's grey
        rounds = [divmod(place, len(hues)) for place in range(len(others))]
        shades = _shades(1 + rounds[-1][0])
        found = [Look(_shaded(hues[hue], shades[turn]), MARKERS[place % len(MARKERS)], DASHES[hue])
                 for place, (turn, hue) in enumerate(rounds)]  # fmt: skip
    return {baseline: Look(BASELINE_COLOUR, "o", "-"), **dict(zip(others, found, strict=False))}


def _parts(names: Sequence[str]) -> list[tuple[int, int]] | None:
    """The places of each name's first and second part among all; None where not every name has two."""
    pairs = []
    for name in names:
        match = re.fullmatch(r"([^+]+)\+(.+)", name) or re.fullmatch(r"(.*\D)(\d+)", name)
        if match is None:
            return None
        pairs.append(match.groups())
    first, second = (list(dict.fromkeys(part)) for part in zip(*pairs, strict=True))
    if len(first) > len(DASHES) or len(second) > len(MARKERS):
        return None
    return [(first.index(head), second.index(tail)) for head, tail in pairs]


def _shades(count: int) -> list[float]:
    """Evenly from light (0.45 of the way to white) to dark (0.4 to black); the pure hue where it is one."""
    return [0.45 - 0.85 * place / (count - 1) for place in range(count)] if count > 1 else [0.0]


def _shaded(colour: str, shade: float) -> str:
    towards = 1.0 if shade > 0 else 0.0
    red, green, blue = (channel + abs(shade) * (towards - channel) for channel in to_rgb(colour))
    return str(to_hex((red, green, blue)))


FONT = "Report Sans"


@cache
def _install_font() -> tempfile.TemporaryDirectory[str]:
    """DejaVu Sans without its rarer characters, as the family FONT, for as long as the result is kept.

    Matplotlib reads the whole font again for each PDF; with all of DejaVu Sans that is half the time of a report.
    """
    options = subset.Options(layout_features=[])
    options.drop_tables += ["FFTM"]  # of the editor that drew it; only warned about
    font = subset.load_font(font_manager.findfont("DejaVu Sans"), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[*range(0x20, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2300)])
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID == 1:  # the family
            record.string = FONT
    folder = tempfile.TemporaryDirectory(prefix="reports-")
    font.save(f"{folder.name}/font.ttf")
    font_manager.fontManager.addfont(f"{folder.name}/font.ttf")
    return folder


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib settings for a figure at column width: nothing under 7 points, no mathtext in names."""
    _install_font()
    with plt.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": [FONT, "DejaVu Sans"],
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
    ):
        yield
