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
    others = len(table.columns) - 1
    rows = [list(map(escape_markdown, table.columns)), [":--", *["--:"] * others]]
    for block in table.blocks:
        if block.heading:
            rows.append([f"*{escape_markdown(block.heading)}*", *[""] * others])
        rows += [_emphasised(row, escape_markdown, "**{}**") for row in block.rows]
    lines = [f"### {escape_markdown(table.title)}", "", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", *(f"{escape_markdown(note)}\n" for note in table.notes)])


def latex(table: Table) -> str:
    """A booktabs table with its notes beneath; `\\usepackage{booktabs}` is all it needs.

    A table of more than six columns is set small and tight, and a column of sentences wraps.
    """
    width, rows = len(table.columns), [row for block in table.blocks for row in block.rows]
    longest = [max((len(row.cells[place]) for row in rows), default=0) for place in range(width)]
    wrapped = rf"p{{{0.6 / max(1, sum(length > 28 for length in longest)):.2f}\linewidth}}"
    alignment = "".join(wrapped if length > 28 else "r" if place else "l" for place, length in enumerate(longest))
    lines = [r"\begin{table}", r"\centering"]
    if width > 6:
        lines.append(r"\scriptsize\setlength{\tabcolsep}{3pt}")
    lines += [rf"\caption{{{escape_latex(table.title)}}}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines.append(" & ".join(map(escape_latex, table.columns)) + r" \\")
    for block in table.blocks:
        lines.append(r"\midrule")
        if block.heading:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape_latex(block.heading)}}}}} \\")
        lines += [" & ".join(_emphasised(row, escape_latex, r"\textbf{{{}}}")) + r" \\" for row in block.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _emphasised(row: Row, escape: Callable[[str], str], bold: str) -> list[str]:
    texts = [escape(cell) for cell in row.cells]
    return [bold.format(text) if place in row.bold else text for place, text in enumerate(texts)]
