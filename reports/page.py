"""The page of a study: its sections in order, each with the functions that make its tables and draw its figures.

To add a table or a figure, write its function in a file of `reports/sections` and name it here; to add a section, write
a file there and an entry here. A section with nothing to show is left out.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt

from reports import fonts, style
from reports.figures import Drawn
from reports.results import Results, by_measurement
from reports.sections import answer, cells, geometry, grid, ladder, paper_tables, samples, search, training, variants
from reports.tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the page, with all that it can show; what has nothing to show of a study is left out of its page."""

    title: str
    tables: tuple[Callable[[Results], Table | None], ...] = ()
    figures: tuple[Callable[[Results], Iterator[Drawn]], ...] = ()
    folded: bool = False  # shown only where the reader opens it


PAGE = (
    Section(
        "Answer",
        tables=(
            paper_tables.table1,
            paper_tables.table2,
            paper_tables.reimplementations,
            paper_tables.figure4,
            paper_tables.attention_against_residual,
            ladder.ladder,
            grid.grid,
            grid.effects,
        ),
        figures=(answer.seeds, answer.differences, answer.looks, grid.rates, ladder.waterfall),
    ),
    Section("Search", tables=(search.trials,), figures=(search.history, search.importances)),
    Section(
        "Variants",
        tables=(variants.scores, variants.evidence, variants.spread, variants.costs, variants.best_of_run),
    ),
    Section("Training curves", figures=(training.scores, training.figure3)),
    Section("Samples", figures=(samples.samples, samples.stages)),
    Section("Attention", figures=(samples.attention,)),
    Section(
        "Geometry against texture",
        tables=(geometry.groups_table,),
        figures=(geometry.groups, geometry.classes, geometry.class_scores, geometry.published_classes),
    ),
    Section("Inside the networks", figures=(training.diagnostics,)),
    Section("Every metric", tables=(variants.every_metric,), folded=True),
    Section("Cells", tables=(cells.cells,)),
)


@dataclass(frozen=True)
class Panel:
    """A drawn figure, ready to be written or inlined; without a PDF where none was asked for."""

    name: str
    caption: str
    png: bytes
    pdf: bytes | None

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Content:
    """What a section shows of one study."""

    section: Section
    tables: list[Table]
    panels: list[Panel]


@dataclass(frozen=True)
class Part:
    """What a page shows of the cells that were measured in one way."""

    results: Results
    headline: str
    power_statement: str | None
    contents: list[Content]


def parts_of(results: Results, drawn: bool, pdf: bool) -> list[Part]:
    """The page of a study: one part, and one more for each other way in which cells were measured.

    `drawn` says whether figures are, `pdf` whether as PDF too. Names of a further part's figures end in its number.
    """
    parts = []
    for place, part in enumerate(by_measurement(results), 1):
        suffix, contents = "" if place == 1 else f"-{place}", []
        for section in PAGE:
            tables = [table for make in section.tables if (table := make(part)) is not None]
            panels = [panel for draw in section.figures if drawn for panel in _panels(draw, part, pdf, suffix)]
            if tables or panels:
                contents.append(Content(section, tables, panels))
        parts.append(Part(part, answer.headline(part), answer.power_statement(part), contents))
    return parts


def _panels(draw: Callable[[Results], Iterator[Drawn]], results: Results, pdf: bool, suffix: str) -> list[Panel]:
    panels: list[Panel] = []
    names = (*(variant.name for variant in results.variants), *results.classes, *results.groups)
    lettering = fonts.lettering(names)
    with style.figure_style(lettering.families):
        for drawn in draw(results):
            name = file_name(drawn.name)
            if name in [panel.name for panel in panels]:
                name = f"{name}-{short_hash(drawn.name)}"
            caption = drawn.caption + lettering.mark(drawn.figure)
            png, vector = io.BytesIO(), io.BytesIO()
            drawn.figure.savefig(png, format="png", metadata={"Software": None})
            if pdf:
                drawn.figure.set_layout_engine("none")  # it is laid out already; once more costs as much as drawing
                drawn.figure.savefig(vector, format="pdf", metadata={"CreationDate": None})
            plt.close(drawn.figure)
            panels.append(Panel(name + suffix, caption, png.getvalue(), vector.getvalue() if pdf else None))
    return panels


def file_name(name: str) -> str:
    """Safe as a file name everywhere: no separators, no leading dot, short."""
    safe = re.sub(r"[^A-Za-z0-9._=+,-]+", "-", name).strip(".-") or "study"
    return safe if len(safe) <= 48 else f"{safe[:40]}-{short_hash(name)}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
