"""What a study amounts to: variants, and cells (variant x seed). Pure; files are read in study.py."""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sagan.config import Config, diff, digest, flatten, override

# What a study may name as its primary metric.
METRICS = (
    *("relation_error", "fid", "fid_extrapolated", "fid_local", "intra_fid", "kid", "is", "precision", "recall"),
    *("density", "coverage", "class_consistency", "relation_correlation", "relation_spread", "class_diversity"),
)
OBJECTIVES = ("fid", "fid_extrapolated", "fid_local", "intra_fid", "kid")  # of a search: lower is better in all
RELATIONS = ("relation_error", "relation_correlation", "relation_spread")  # read off built-in pictures alone
BEST = "best"  # the variant of a search's best trial, run again on the study's own seeds
Changes = dict[str, Any]  # {field: value}
Design = Literal["one_at_a_time", "grid", "ladder"]
Factors = dict[str, dict[str, Changes]]  # {factor: {level: changes}}


@dataclass(frozen=True)
class Arm:
    """A named choice of levels, before it meets a preset."""

    name: str
    factors: dict[str, str]
    changes: Changes


@dataclass(frozen=True)
class Variant:
    """One row of the table. `build_error` is None, or why it cannot be built at this preset: "needs 128 px"."""

    name: str
    factors: dict[str, str]
    changes: Changes
    config: Config
    build_error: str | None


@dataclass(frozen=True)
class Cell:
    """One training run that the study asks for. Equal `key`s are the same cell, on every machine."""

    study: str
    protocol: str
    preset: str
    paper: str | None
    baseline: str
    variant: str
    factors: dict[str, str]
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.variant}/seed{self.seed}"

    @cached_property
    def config_digest(self) -> str:
        return digest(self.config)

    @property
    def key(self) -> str:
        return "|".join((self.study, self.protocol, self.variant, str(self.seed), self.config_digest))

    def directory(self, runs: Path) -> Path:
        return runs / self.study / self.variant / f"seed{self.seed}-{self.config_digest}"

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "config": flatten(self.config)})

    @classmethod
    def from_json(cls, text: str) -> Cell:
        values = json.loads(text)
        return cls(**{**values, "config": override(Config(), values["config"])})


@dataclass(frozen=True)
class Range:
    """Both ends included; whole numbers where the field holds whole numbers."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Search:
    """What is searched: each field has a range, or a tuple of choices. `seed` trains all trials.

    `proposed` and `best` are what the search has come to: {"trial00": {"optim.lr_g": 3e-4}} and "trial00".
    """

    seed: int
    trials: int
    objective: str
    fields: dict[str, Range | tuple[Any, ...]]
    proposed: dict[str, Changes] = field(default_factory=dict)
    best: str | None = None

    def __str__(self) -> str:
        spaces = []
        for name, space in self.fields.items():
            if isinstance(space, Range):
                spaces.append(f"{name} in {space.low:g}..{space.high:g}{' (log)' if space.log else ''}")
            else:
                spaces.append(f"{name} in {list(space)}")
        return f"{self.trials} trials at seed {self.seed} for the lowest {self.objective} over {', '.join(spaces)}"

    def describe_fields(self) -> dict[str, dict[str, Any]]:
        """{"optim.lr_g": {"low": ..., "high": ..., "log": ...}, "optim.d_steps": {"choices": [1, 2]}}."""
        return {
            name: {"low": space.low, "high": space.high, "log": space.log}
            if isinstance(space, Range)
            else {"choices": list(space)}
            for name, space in self.fields.items()
        }


@dataclass(frozen=True)
class Study:
    """A checked study at one preset. `base` is the preset with the study's and the command line's `set` applied.

    A search has no factors: its variants are the baseline, the trials proposed so far, and the best of them once known.
    """

    name: str
    question: str
    preset: str
    paper: str | None
    seeds: tuple[int, ...]
    baseline: str
    design: Design
    factors: Factors
    base: Config
    protocol: str
    path: Path
    text: str
    search: Search | None = None
    metric: str = "fid"  # the primary one
    contrasts: tuple[tuple[str, str], ...] = ()  # (variant, reference), as named; some variants may not be buildable

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What the report will compare, (variant, reference), without variants that this preset cannot carry.

        As named; else rung by rung in a ladder; else each variant with the baseline, a search's best alone.
        """
        carried = [variant.name for variant in self.variants() if variant.build_error is None]
        if self.contrasts:
            return [pair for pair in self.contrasts if set(pair) <= set(carried)]
        if self.search is not None:
            return [(BEST, self.baseline)] if self.baseline in carried else []
        if self.design == "ladder":
            return [(low, high) for high, low in itertools.pairwise(carried)]
        return [(name, self.baseline) for name in carried if name != self.baseline and self.baseline in carried]

    def variants(self) -> list[Variant]:
        found = []
        for arm in [*arms(self.design, self.factors, self.baseline), *_searched(self.search)]:
            config = override(self.base, arm.changes)
            values = flatten(config)
            changes = {name: values[name] for name in arm.changes}
            found.append(Variant(arm.name, arm.factors, changes, config, config.build_error()))
        return found

    def cells(self, only: str = "*") -> list[Cell]:
        """The cells that can be trained and whose variant or `variant/seedK` matches the glob, seed by seed.

        So a first complete table is there after the first seed. Trials of a search come before, at its own seed.
        """
        buildable = [variant for variant in self.variants() if variant.build_error is None]
        trials = self.search.proposed if self.search else {}
        cells = [self._cell(v, self.search.seed) for v in buildable if self.search and v.name in trials]
        cells += [self._cell(v, seed) for seed in self.seeds for v in buildable if v.name not in trials]
        return [cell for cell in cells if _matches(cell.variant, cell.name, pattern=only)]

    def at_seeds(self, seeds: Iterable[int]) -> Study:
        return replace(self, seeds=tuple(seeds))

    def proposing(self, proposed: Mapping[str, Changes], best: str | None) -> Study:
        """This search with the trials that it has come to, and the name of the best one."""
        assert self.search is not None
        return replace(self, search=replace(self.search, proposed=dict(proposed), best=best))

    def outline(self) -> Study:
        """The study with as many trials as it will have, all at the baseline's values: what can be planned ahead."""
        if self.search is None:
            return self
        names = [trial_name(number) for number in range(self.search.trials)]
        return self.proposing({name: {} for name in names}, best=names[0])

    def plan(self) -> dict[str, Any]:
        """plan.json: every variant, also those that cannot be built, and the seeds."""
        variants = [
            {
                "name": variant.name,
                "factors": variant.factors,
                "changes": variant.changes,
                "obstacle": variant.build_error,
                "config_digest": digest(variant.config),
            }
            for variant in self.variants()
        ]
        fields = ("question", "paper", "protocol", "preset", "baseline", "metric")
        return {
            "study": self.name,
            **{field: getattr(self, field) for field in fields},
            "design": "search" if self.search else self.design,
            "factors": list(self.factors),
            "contrasts": [list(pair) for pair in self.pairs] if self.contrasts else [],
            "variants": variants,
            "seeds": list(self.seeds),
        }

    def _cell(self, variant: Variant, seed: int) -> Cell:
        return Cell(
            study=self.name,
            protocol=self.protocol,
            preset=self.preset,
            paper=self.paper,
            baseline=self.baseline,
            variant=variant.name,
            factors=variant.factors,
            seed=seed,
            config=variant.config,
        )


def arms(design: Design, factors: Factors, baseline: str) -> list[Arm]:
    """The variants of a design in the order of the file; `one_at_a_time` puts the baseline first.

    one_at_a_time: the baseline takes the level of that name in every factor; every other level, alone, is a variant.
    grid: the product of all levels, names joined by "+". ladder: the levels of one factor add up, first to last.
    """
    return list({"one_at_a_time": _one_at_a_time, "grid": _grid, "ladder": _ladder}[design](factors, baseline))


def trial_name(number: int) -> str:
    return f"trial{number:02d}"


def is_trial_name(name: str) -> bool:
    return re.fullmatch(r"trial\d{2,}", name) is not None


def unmeasured(metric: str, config: Config) -> str:
    """Why runs of `config` do not have a metric that others have (sagan/metrics/evaluation.py); "" where they do."""
    data, extractor = config.data.name, config.eval.extractor
    labelled = config.model.conditioning != "none"
    # A classifier that was trained for a data set is named after it: imagenette-1a2b3c4d.
    knows_classes = labelled and extractor.rpartition("-")[0] == data
    has = f"here model.conditioning={config.model.conditioning} and eval.extractor={extractor}"
    if metric in RELATIONS and data != "embedded":
        return f"is read off the built-in pictures alone, and this preset has {data}"
    if metric == "intra_fid" and not labelled:
        return "is of classes, and model.conditioning=none has none"
    if metric == "class_consistency" and not knows_classes:
        return f"needs labels and an extractor that knows the classes of {data}; {has}"
    if metric == "is" and not knows_classes and not (extractor == "inception" and data != "embedded"):
        return f"needs an extractor whose classes fit the pictures of {data}; {has}"
    return ""


def describe_protocol(preset: str, preset_config: Config, base: Config) -> str:
    """ "embedded", or "embedded + optim.steps=500, data.h_flip=true": the scale that cells are compared at."""
    changes = diff(preset_config, base)
    listed = ", ".join(f"{name}={show(changes[name][1])}" for name in sorted(changes))
    return f"{preset} + {listed}" if listed else preset


def show(value: Any) -> str:
    """A config value as a study file would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def _one_at_a_time(factors: Factors, baseline: str) -> Iterator[Arm]:
    home = {factor: baseline for factor in factors}
    yield Arm(baseline, home, _merged(factors, home))
    for factor, levels in factors.items():
        for level in levels:
            if level != baseline:
                chosen = {**home, factor: level}
                yield Arm(level, chosen, _merged(factors, chosen))


def _grid(factors: Factors, baseline: str) -> Iterator[Arm]:
    for levels in itertools.product(*factors.values()):
        chosen = dict(zip(factors, levels, strict=True))
        yield Arm("+".join(levels), chosen, _merged(factors, chosen))


def _ladder(factors: Factors, baseline: str) -> Iterator[Arm]:
    (factor, levels), *_ = factors.items()
    changes: Changes = {}
    for level, step in levels.items():
        changes = {**changes, **step}
        yield Arm(level, {factor: level}, changes)


def _searched(search: Search | None) -> Iterator[Arm]:
    if search is None:
        return
    if search.best is not None:
        yield Arm(BEST, {}, search.proposed[search.best])
    for name, changes in search.proposed.items():
        yield Arm(name, {}, changes)


def _merged(factors: Factors, chosen: Mapping[str, str]) -> Changes:
    merged: Changes = {}
    for factor, level in chosen.items():
        merged.update(factors[factor][level])
    return merged


def _matches(*names: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
