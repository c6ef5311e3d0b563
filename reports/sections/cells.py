"""Every planned cell and how far it is: as a table, and counted in a sentence."""

from __future__ import annotations

import pandas as pd

from reports import format
from reports.results import ENDED_EARLY, LATER, NOT_NEEDED, Results
from reports.tables import Block, Row, Table


def cells(results: Results) -> Table:
    """One row per variant, one column per seed; beneath it the notes on runs that are left out."""
    found = {(row["variant"], row["seed"]): row for row in results.cells.to_dict("records")}

    def text(variant: str, seed: int) -> str:
        row = found[variant, seed]
        shared = "" if pd.isna(row["shared_study"]) else f", shared with {row['shared_study']}"
        if pd.isna(row["step"]) or row["state"] == "finished":
            return f"{row['state']}{shared}"
        of = "" if pd.isna(row["steps"]) else f" of {format.number(row['steps'], 0)}"
        return f"{row['state']} at {format.number(row['step'], 0)}{of}{shared}"

    rows = (Row((item.name, *(text(item.name, seed) for seed in results.seeds))) for item in results.variants)
    columns = ("variant", *(f"seed {seed}" for seed in results.seeds))
    return Table("Cells", columns, (Block(None, tuple(rows)),), results.notes)


def progress(results: Results) -> str:
    """ "10 of 12 cells done: 9 finished, 1 collapsed; 1 running, 1 missing; 3 cannot run at this scale"."""
    states = [state for variant in results.variants if not variant.build_error
              for state in results.of(variant.name)["state"]]  # fmt: skip
    done, spare = ("finished", *ENDED_EARLY), (NOT_NEEDED, LATER)
    counts = {state: states.count(state) for state in (*done, *sorted(set(states) - {*done, *spare}))}
    listed = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    impossible = sum(variant.build_error is not None for variant in results.variants) * len(results.seeds)
    rest = "".join(f"; {states.count(state)} {state}" for state in spare if state in states)
    rest += f"; {impossible} cannot run at this scale" if impossible else ""
    of_search = ""
    if results.search is not None:
        trials = f"{results.search.tried} of {len(results.search.trials)} trials"
        of_search = f"{trials} done; to confirm the best, "
    return f"{of_search}{sum(counts[state] for state in done)} of {sum(counts.values())} cells done: {listed}{rest}"
