"""What a worker tells of its cell, written to the cell's spool and then sent to its run in MLflow.

A cell's run is found again by its tags, so whoever resumes the cell resumes its run. Training never waits for the
tracker for long and never dies with it.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ablations.outbox import Outbox
from ablations.plan import Cell
from ablations.sharing import Source, find_source
from ablations.spool import Spool
from sagan.pictures import picture_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_TAG = 8000  # characters; MLflow cuts off the rest
_FLUSH_SECONDS = 1.0
_HOLD_SECONDS = 10.0  # for a launch that is sending what the last worker at this cell left
_log = logging.getLogger(__name__)


class CellRun:
    """What is told of one cell, by the one process that trains it: to the spool in its directory, then to the store.

    `outcome` is not None where the cell has one already, in the spool or in the store, so far as that answers. A copy
    of another run stands for the cell only if `shared`.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        parent: str,
        cell: Cell,
        about: Mapping[str, str],
        directory: Path,
        shared: bool = True,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.cell, self._client, self._directory = cell, client, directory
        self._spool = Spool.of(directory, cell.key)
        if not self._spool.hold(_HOLD_SECONDS):  # whoever holds it was taken for dead; what both send is the same
            _log.warning("%s: another process still has its spool open", cell.name)
        kept = self._spool.summary()
        if "shared_study" in kept.tags:  # the store has lost this copy, or it must not count: find or train it again
            self._spool.clear()
            kept = self._spool.summary()
        self._keys: dict[str, str] = {}  # of metrics that the store would refuse: what they are called there
        self._time = kept.time
        self.outcome = kept.tags.get("outcome")
        if self.outcome is None:
            start = {"cell": cell.to_json(), "parent": parent, "about": dict(about), "shared": shared}
            self._spool.append("start", **start, time=self._now())
        self._outbox = Outbox(client, experiment_id, self._spool)
        self._send()
        self.outcome = self.outcome or self._outbox.recorded

    @property
    def is_sent(self) -> bool:
        """Whether the store has all that was told."""
        return not self._spool.has_unsent

    @property
    def run_id(self) -> str | None:
        """None while the store has not answered yet."""
        return self._spool.mark.run_id

    def describe(self, tags: Mapping[str, str]) -> None:
        """Adds what is known once the data set is open."""
        for key, value in tags.items():
            self._tag(**{key: value})
        self._send()

    def describe_classes(self, classes: Sequence[str], groups: Mapping[str, Sequence[int]]) -> None:
        """Names and groups of classes; names are folders of the user's, and may hold what no metric's key can.

        So many names that no tag holds them are left out, and with them the groups: they have no metrics of their own.
        """
        names = storable(classes)
        self._keys = {f"fid_class/{name}": f"fid_class/{stored}" for name, stored in zip(classes, names, strict=True)}
        text = json.dumps(names)
        if len(text) <= _MAX_TAG:
            self.describe({"classes": text, "groups": json.dumps(groups)})

    def log(self, step: int, metrics: Mapping[str, float], now: bool = False) -> None:
        """Metrics at `step`; they travel about once a second, or at once if `now`. Only finite values are stored."""
        values = {self._keys.get(key, key): float(value) for key, value in metrics.items() if np.isfinite(value)}
        if values:
            self._spool.append("metrics", time=self._now(), step=step, values=values)
        if now or time.monotonic() - self._sent > _FLUSH_SECONDS:
            self._send()

    def log_images(self, step: int, images: Mapping[str, NDArray[Any]]) -> None:
        """Sample grids and attention maps: written to the cell's directory, then sent."""
        for name, content in picture_files(step, images).items():
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._spool.append("file", name=name)
        if "samples" in images:
            self._tag(tile_px=str(images["samples"].shape[2]))
        self._send()

    def finish(self, outcome: str, last_step: int) -> bool:
        """Stores the outcome; False where so far it is in the spool alone."""
        if (self._directory / "generator.safetensors").exists():
            self._spool.append("file", name="generator.safetensors")
        self._tag(last_step=str(last_step))
        self._tag(outcome=outcome)
        self.outcome = outcome
        return self._end("FINISHED")

    def find_source(self, data_fingerprint: str, metric_fingerprint: str) -> Source | None:
        """Another study's result of this cell; None also while the store is away."""
        return find_source(self._client, self.cell, data_fingerprint, metric_fingerprint) if self._send() else None

    def share(self, source: Source) -> bool:
        """Ends as a copy of `source`. Its tags arrive in one call and last: half a copy has no outcome."""
        points = sorted(source.points, key=lambda point: (point.timestamp, point.step))
        for (stamp, step), group in groupby(points, key=lambda point: (point.timestamp, point.step)):
            values = {point.key: point.value for point in group}
            self._spool.append("metrics", time=stamp, step=step, values=values)
        shared = {"shared_run": source.run_id, "shared_study": source.study}
        self._tag(**source.about, **shared, outcome=source.outcome)
        self.outcome = source.outcome
        return self._end("FINISHED")

    def fail(self, traceback: str) -> None:
        self._spool.append("text", name="traceback.txt", text=traceback)
        self._tag(error=traceback.strip().splitlines()[-1][:500])
        self._end("FAILED")

    def pause(self) -> None:
        """The cell goes back to the queue: until it is resumed nobody trains it, and the store says so."""
        self._end("KILLED")

    def close(self) -> None:
        """Lets others send what is left."""
        self._spool.release()

    def _tag(self, **tags: str) -> None:
        self._spool.append("tags", tags=tags)

    def _now(self) -> int:
        """Milliseconds since 1970, later than any before, also where the clock was put back: of two points at one step
        the newer counts, and no run ends before it begins."""
        self._time = max(int(time.time() * 1000), self._time + 1)
        return self._time

    def _send(self) -> bool:
        self._sent = time.monotonic()
        return self._outbox.send()

    def _end(self, status: str) -> bool:
        self._spool.append("end", status=status, time=self._now())
        return self._send()


def storable(names: Sequence[str]) -> list[str]:
    """`names` as keys of MLflow take them, each still different: one refused key would lose all scores of its step."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.\- :]", "_", name)[:200]
        while plain in found:
            plain += "_"
        found.append(plain)
    return found
