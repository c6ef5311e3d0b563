"""The fonts of figures: our own for most names, any installed one for others, and numbers for what no font has."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache

from fontTools import subset
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

FAMILY = "Report Sans"
_KEPT = [*range(0x20, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2300)]  # Latin, Greek, punctuation, symbols


@dataclass(frozen=True)
class Lettering:
    """How the names of a study are drawn: the families of fonts to look for a character in, first to last, and
    {word that none of them has in full: what stands in its place, such as "[1]"}.
    """

    families: tuple[str, ...]
    marks: dict[str, str]

    def mark(self, figure: Figure) -> str:
        """Puts the marks into all texts of a figure; returns a sentence on those that it has, "" where none."""
        if not self.marks:
            return ""
        longest_first = sorted(self.marks, key=len, reverse=True)
        words, used = re.compile("|".join(map(re.escape, longest_first))), dict[str, str]()

        def marked(text: str) -> str:
            used.update((word, self.marks[word]) for word in words.findall(text))
            return words.sub(lambda match: self.marks[match[0]], text)

        for text in figure.findobj(Text):
            text.set_text(marked(text.get_text()))
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            if isinstance(axis.get_major_locator(), FixedLocator):  # its texts are written again when it is drawn
                axis.set_ticklabels([marked(label.get_text()) for label in axis.get_ticklabels()])
        listed = ", ".join(f"{mark} {word}" for word, mark in used.items())
        return f" No font here can draw {listed}." if used else ""


@cache
def lettering(names: tuple[str, ...]) -> Lettering:
    """For the names that the figures of a study show."""
    _install()
    families, left = [FAMILY], set("".join(names)) - _characters(FAMILY) - {"\n", "\t"}
    plain = {entry.name for entry in font_manager.fontManager.ttflist
             if (entry.style, entry.weight, entry.stretch) == ("normal", 400, "normal")}  # fmt: skip
    others = sorted(name for name in plain if not name.startswith("Last Resort"))  # it has a box for everything
    while left:
        best = max(others, key=lambda family: len(_characters(family) & left))
        if not _characters(best) & left:
            break
        families.append(best)
        left -= _characters(best)
    # A word with a character that is missing is replaced completely.
    words = re.findall(f"[^{re.escape(''.join(sorted(_characters(FAMILY))))}\n\t]+", "\n".join(names))
    lacking = dict.fromkeys(word for word in words if left & set(word))
    return Lettering(tuple(families), {word: f"[{number}]" for number, word in enumerate(lacking, 1)})


@cache
def _characters(family: str) -> frozenset[str]:
    """What the font of an installed family has glyphs for."""
    return frozenset(map(chr, font_manager.get_font(font_manager.findfont(family)).get_charmap()))


@cache
def _install() -> tempfile.TemporaryDirectory[str]:
    """DejaVu Sans without its rarer characters, as FAMILY, for as long as the result is kept.

    Matplotlib reads the complete font again for each PDF; with all of DejaVu Sans that is half the time of a report.
    """
    options = subset.Options(layout_features=[])
    options.drop_tables += ["FFTM"]  # of the editor that drew it; only warned about
    font = subset.load_font(font_manager.findfont("DejaVu Sans"), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=_KEPT)
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID == 1:  # the family
            record.string = FAMILY
    folder = tempfile.TemporaryDirectory(prefix="reports-")
    font.save(f"{folder.name}/font.ttf")
    font_manager.fontManager.addfont(f"{folder.name}/font.ttf")
    return folder
