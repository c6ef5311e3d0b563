"""A cell of more steps is resumed from the last checkpoint of a shorter one that differs only in its number of steps.

The shorter cell's records up to that checkpoint, and its pictures, are copied to the longer one's folder, so that the
store has the complete history. The shorter cell stays as it was.
"""

from __future__ import annotations

from pathlib import Path

from ablations.attempts import ShorterRun, attempts
from ablations.plan import Cell
from sagan import journal
from sagan.config import is_prefix_of


def find_shorter_run(runs: Path, cell: Cell, images: str | None) -> ShorterRun | None:
    """The shorter cell with the most steps; None where there is none. `images` is the fingerprint of those that `cell`
    is trained on, where it is known."""
    from sagan.checkpoint import read_checkpoint

    found: list[ShorterRun] = []
    for directory in cell.directory(runs).parent.glob(f"seed{cell.seed}-*"):
        tried = [each for each in attempts(directory) if is_prefix_of(each.cell.config, cell.config)]
        tried = [each for each in tried if not each.upload_state.is_lost]
        checkpoint = None
        while tried and (checkpoint := read_checkpoint(tried[-1].folder)) is None:
            tried.pop()
        if checkpoint is None:
            continue
        content, state = checkpoint
        # Drop journal lines after the checkpoint: the resumed run writes them again, possibly with other values.
        records = journal.current(record for each in tried for record in each.read(0, each.end)[0])
        records = [one for one in records if one.step <= state.get("since", state["step"]) and one.status is None]
        protocol, is_complete = tried[-1].protocol, bool(records) and records[0].step == 0
        if protocol is not None and is_complete and images in (None, state.get("images", images)):
            found.append(ShorterRun(state["step"], content, records, [each.folder for each in tried], protocol))
    return max(found, key=lambda shorter: shorter.step, default=None)
