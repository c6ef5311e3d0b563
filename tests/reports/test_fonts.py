"""Names in characters that our own font lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import made_studies
import matplotlib.pyplot as plt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from reports import fonts, page
from reports.results import Results

CAT, DOG = "猫", "犬のなかま"


@pytest.fixture(autouse=True)
def _fonts_of_matplotlib_alone() -> Iterator[None]:
    fonts._install()  # once for the process, and not for one test
    fonts.lettering.cache_clear()
    installed = font_manager.fontManager.ttflist
    before = list(installed)
    installed[:] = [entry for entry in before if "mpl-data" in entry.fname or entry.name == fonts.FAMILY]
    yield
    installed[:] = before
    fonts.lettering.cache_clear()


@pytest.fixture
def results() -> Results:
    """Two of six classes and one variant have such names."""
    made = made_studies.results({"none": 20.0, f"{CAT} + feat16": 18.0})
    stripes, checks, *others = made.classes
    renamed = {f"fid_class/{stripes}": f"fid_class/{CAT}", f"fid_class/{checks}": f"fid_class/{DOG}"}
    return replace(made, classes=(CAT, DOG, *others), final_scores=made.final_scores.rename(columns=renamed))


def captions(results: Results) -> dict[str, str]:
    """{figure: its caption}, all drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (part,) = page.parts_of(results, drawn=True, pdf=True)
    return {panel.name: panel.caption for content in part.contents for panel in content.panels}


def test_names_that_no_font_can_draw_are_numbered_and_told_beneath(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(plt, "close", lambda figure: shown.extend(
        label.get_text() for axes in figure.axes for label in axes.get_yticklabels()))  # fmt: skip
    found = captions(results)
    assert found["classes"].endswith(f"No font here can draw [1] {CAT}, [2] {DOG}.")
    assert found["seeds"].endswith(f"No font here can draw [1] {CAT}.")
    assert {"[1] + feat16", "[1]", "[2]"} <= set(shown) and CAT not in "".join(shown)


def test_names_are_drawn_by_an_installed_font_that_has_them(results: Results, tmp_path: Path) -> None:
    install_font(tmp_path / "cats.ttf", "Cats", CAT)
    assert fonts.lettering((CAT, "none")) == fonts.Lettering((fonts.FAMILY, "Cats"), {})
    found = captions(results)
    assert found["classes"].endswith(f"No font here can draw [1] {DOG}.") and "No font" not in found["seeds"]


def test_of_several_fonts_the_one_that_has_most_of_the_names_is_taken(tmp_path: Path) -> None:
    install_font(tmp_path / "a.ttf", "A few", DOG[:2])
    install_font(tmp_path / "b.ttf", "Most", DOG)
    assert fonts.lettering((DOG,)).families == (fonts.FAMILY, "Most")


def test_plain_names_take_one_small_font_alone() -> None:
    assert fonts.lettering(("none", "größer", "α → β")) == fonts.Lettering((fonts.FAMILY,), {})


def install_font(path: Path, family: str, characters: str) -> None:
    """A font with a square for each of these characters."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [f"glyph{number}" for number in range(len(characters))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", *names])
    font.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    font.setupGlyf({name: square for name in (".notdef", *names)})
    font.setupHorizontalMetrics({name: (1000, 0) for name in (".notdef", *names)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    font_manager.fontManager.addfont(path)
