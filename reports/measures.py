"""Numbers compare only where data set and metric fingerprint agree: a unit split accordingly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reports.unit import Unit

# Parts of a metric fingerprint that name what is scored rather than what scores it, and the fields that decide them.
_SCORED = {"optim.ema_decay": ("ema", "raw"), "eval.bn": ("bn running", "bn standing")}


def by_measure(unit: Unit) -> list[Unit]:
    """The unit split so that each part holds one data set and one metric fingerprint: such numbers alone compare.

    The part with most finished cells comes first. Cells that have not started belong to every part. Which weights are
    scored is no part of the measure where the study's variants differ in just that.
    """
    unit = _without_factors(unit)
    cells = unit.cells
    keys = cells["data_fingerprint"].fillna("") + "\n" + cells["metric_fingerprint"].fillna("")
    finished = keys[cells["state"] == "finished"].value_counts()
    measures = sorted((key for key in keys.unique() if key != "\n"), key=lambda key: -int(finished.get(key, 0)))
    if len(measures) < 2:
        return [unit]
    parts = []
    for number, measure in enumerate(measures, 1):
        keep = (keys == measure) | (keys == "\n")
        pairs = set(zip(cells.loc[keep, "variant"], cells.loc[keep, "seed"], strict=True))
        rows = [pair in pairs for pair in zip(unit.histories["variant"], unit.histories["seed"], strict=True)]
        note = (
            f"The cells of this study were measured in {len(measures)} ways; numbers of different ways never share a "
            f"table. This is way {number}, with {int((keys == measure).sum())} cells."
        )
        parts.append(
            replace(
                unit,
                cells=cells.assign(
                    state=cells["state"].where(keep, "measured otherwise"),
                    metric_fingerprint=cells["metric_fingerprint"].where(keep, None),
                    data_fingerprint=cells["data_fingerprint"].where(keep, None),
                ),
                finals=unit.finals.where(keep),
                histories=unit.histories[np.array(rows, dtype=bool)],
                pictures=tuple(picture for picture in unit.pictures if (picture.variant, picture.seed) in pairs),
                notes=(*unit.notes, note),
            )
        )
    return parts


def _without_factors(unit: Unit) -> Unit:
    varied = {field for variant in unit.variants for field in variant.changes}
    dropped = {part for field, parts in _SCORED.items() if field in varied for part in parts}
    if not dropped:
        return unit

    def kept(fingerprint: object) -> object:
        if not isinstance(fingerprint, str):
            return fingerprint
        return "; ".join(part for part in fingerprint.split("; ") if part not in dropped)

    cells = unit.cells.assign(metric_fingerprint=unit.cells["metric_fingerprint"].map(kept))
    note = f"Variants differ in what is scored ({', '.join(sorted(dropped))}): see their fields."
    return replace(unit, cells=cells, notes=(*unit.notes, note))
