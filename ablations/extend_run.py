"""A cell of more steps is resumed from the last checkpoint of a shorter one that differs only in its number of steps.

The shorter cell's records up to that checkpoint, and its pictures, are copied to the longer one's folder, so that the
store has the complete history. The shorter cell stays as it was.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.attempts import attempts
from ablations.plan import Cell
from sagan import journal
from sagan.config import is_prefix_of
from sagan.journal import Record
from sagan.run_folder import PROTOCOL


@dataclass(frozen=True)
class ShorterRun:
    """A shorter run with the same first steps. `folders` are those of its attempts, oldest first."""

    step: int
    checkpoint: bytes
    records: list[Record]
    folders: list[Path]
    protocol: dict[str, Any]

    @property
    def seconds(self) -> float:
        return self.records[-1].time - self.records[0].time

    @property
    def origin(self) -> str:
        """The tag `resumed_from`: "attention_position/none/seed20-1a2b3c4d5e6f7081/attempt-1 at step 800"."""
        return f"{'/'.join(self.folders[-1].parts[-4:])} at step {self.step}"

    def copy_checkpoint(self, folder: Path) -> None:
        from sagan.checkpoint import put_checkpoint

        put_checkpoint(folder, self.checkpoint)

    def copy(self, folder: Path, started: float) -> None:
        """All but the checkpoint, as if it had begun at `started`, in seconds since 1970."""
        late = started - self.records[0].time
        for name in {name for record in self.records for name in record.files if name != PROTOCOL}:
            source = next((each / name for each in reversed(self.folders) if (each / name).exists()), None)
            if source is not None and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
        (folder / PROTOCOL).write_text(json.dumps({**self.protocol, "step": self.step}))
        # Without PROTOCOL: the longer run uploads its own at its end, because eval.endpoint may differ.
        records = [
            replace(one, time=one.time + late, files=tuple(name for name in one.files if name != PROTOCOL))
            for one in self.records
        ]
        journal.write(folder / journal.NAME, records)


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
