"""Published numbers, from paper.yaml: shown beside ours, never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML


@dataclass(frozen=True)
class Published:
    """One record of paper.yaml."""

    table: str
    variant: str
    metric: str
    value: float
    dataset: str
    protocol: str
    certainty: str
    source: str
    step: int | None = None


@cache
def published(name: str) -> tuple[Published, ...]:
    """The records of one published table, such as "table1"."""
    text = files("reports").joinpath("paper.yaml").read_text(encoding="utf-8")
    records = (Published(**record) for record in YAML(typ="safe", pure=True).load(text)["records"])
    return tuple(record for record in records if record.table == name)
