"""A Table as text of a format. Every name from the store is escaped here; HTML is escaped by its template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from reports.tables import Row, Table

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


def markdown_page(title: str, question: str, answer: str, power_statement: str | None, tables: Iterable[Table]) -> str:
    """A heading, the question, the answer in bold with what the design could have shown, and the tables."""
    said = [f"# {escape_markdown(title)}", escape_markdown(question), f"**{escape_markdown(answer)}**"]
    said += [escape_markdown(power_statement)] if power_statement else []
    return "\n\n".join([*said, "\n".join(map(markdown, tables))])


def markdown(table: Table) -> str:
    lines = [f"### {escape_markdown(table.title)}", "", _pipes(table.columns)]
    lines.append("|" + "|".join([" :-- ", *[" --: "] * (len(table.columns) - 1)]) + "|")
    for block in table.blocks:
        if block.heading:
            lines.append(_pipes([f"*{escape_markdown(block.heading)}*", *[""] * (len(table.columns) - 1)], raw=True))
        lines += [_pipes(_emphasised(row, escape_markdown, "**{}**"), raw=True) for row in block.rows]
    return "\n".join([*lines, "", *(f"{escape_markdown(note)}\n" for note in table.notes)])


def latex(table: Table) -> str:
    """A booktabs table with its notes beneath; `\\usepackage{booktabs}` is all it needs.

    A table of more than six columns is set small and tight, and a column of sentences wraps.
    """
    width = len(table.columns)
    body: list[str] = []
    for block in table.blocks:
        body.append(r"\midrule")
        if block.heading:
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape_latex(block.heading)}}}}} \\")
        body += [" & ".join(_emphasised(row, escape_latex, r"\textbf{{{}}}")) + r" \\" for row in block.rows]
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
        max((len(row.cells[place]) for block in table.blocks for row in block.rows), default=0)
        for place in range(len(table.columns))
    ]
    wrapped = rf"p{{{0.6 / max(1, sum(length > 28 for length in longest)):.2f}\linewidth}}"
    return "".join(wrapped if length > 28 else "r" if place else "l" for place, length in enumerate(longest))


def _pipes(cells: Iterable[str], raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else map(escape_markdown, cells)) + " |"


def _emphasised(row: Row, escape: Callable[[str], str], bold: str) -> list[str]:
    texts = [escape(cell) for cell in row.cells]
    return [bold.format(text) if place in row.bold else text for place, text in enumerate(texts)]
