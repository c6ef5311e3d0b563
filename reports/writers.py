"""A Table as text of a format. Every name from the store is escaped here; HTML is escaped by its template."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`cells` start with the row's name; `bold` holds the indices of the best figures."""

    cells: tuple[str, ...]
    bold: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """Rows of one origin. `published` ones are the paper's and never to be taken for ours."""

    heading: str | None
    rows: tuple[Row, ...]
    published: bool = False


@dataclass(frozen=True)
class Table:
    """Plain text in every cell; it is escaped for each format when it is written."""

    name: str
    title: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"$<$", ">": r"$>$", "|": r"\textbar{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--", "\n": " ",
    "[": "{[}", "*": "{*}",  # at the start of a row they would be an argument of what ends the row before
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text that LaTeX typesets as it stands; it can start no command."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Text that ends no table cell and starts no markup or HTML."""
    return re.sub(r"([\\|*`<>\[\]])", r"\\\1", text.replace("\n", " "))


def markdown(table: Table) -> str:
    lines = [f"### {escape_markdown(table.title)}", "", _pipes(table.columns)]
    lines.append("|" + "|".join([" :-- ", *[" --: "] * (len(table.columns) - 1)]) + "|")
    for section in table.sections:
        if section.heading:
            lines.append(_pipes([f"*{escape_markdown(section.heading)}*", *[""] * (len(table.columns) - 1)], raw=True))
        lines += [_pipes(_emphasised(row, escape_markdown, "**{}**"), raw=True) for row in section.rows]
    return "\n".join([*lines, "", *(f"{escape_markdown(note)}\n" for note in table.notes)])


def latex(table: Table) -> str:
    """A booktabs table with its notes beneath; `\\usepackage{booktabs}` is all it needs.

    A table of more than six columns is set small and tight, and a column of sentences wraps.
    """
    width = len(table.columns)
    body: list[str] = []
    for section in table.sections:
        body.append(r"\midrule")
        if section.heading:
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape_latex(section.heading)}}}}} \\")
        body += [" & ".join(_emphasised(row, escape_latex, r"\textbf{{{}}}")) + r" \\" for row in section.rows]
    notes = [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([r"\scriptsize\setlength{\tabcolsep}{3pt}"] if width > 6 else []),
            rf"\caption{{{escape_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{_alignment(table)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, table.columns)) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _alignment(table: Table) -> str:
    longest = [
        max((len(row.cells[place]) for section in table.sections for row in section.rows), default=0)
        for place in range(len(table.columns))
    ]
    wrapped = rf"p{{{0.6 / max(1, sum(length > 28 for length in longest)):.2f}\linewidth}}"
    return "".join(wrapped if length > 28 else "r" if place else "l" for place, length in enumerate(longest))


def _pipes(cells: tuple[str, ...] | list[str], raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else map(escape_markdown, cells)) + " |"


def _emphasised(row: Row, escape: Callable[[str], str], bold: str) -> list[str]:
    texts = [escape(cell) for cell in row.cells]
    return [bold.format(text) if place in row.bold else text for place, text in enumerate(texts)]
