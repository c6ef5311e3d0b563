"""Reports of ablation studies, from the MLflow store that they were recorded in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.frames import Frames


def load(study: str | None = None, source: str | os.PathLike[str] | None = None) -> Frames:
    """The results of one study, or of all, as data frames: see `reports.frames.load`."""
    from reports import frames  # pandas takes a second to import, and `ablations` uses reports.statistics alone

    return frames.load(study, source)
