"""Studies, their variants and their cells (variant x seed). Pure; files are read in study.py."""

from __future__ import annotations

import fnmatch
import itertools
import json
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sagan.config import Config, diff, digest, flatten, override

# What a study may name as its primary metric.
PRIMARY_METRICS = (
    *("relation_error", "fid", "fid_extrapolated", "fid_local", "intra_fid", "kid", "is", "precision", "recall"),
    *("density", "coverage", "class_consistency", "relation_correlation", "relation_spread", "class_diversity"),
)
UNDIRECTED = ("relation_spread", "class_diversity")  # metrics of which neither more nor less is better
OBJECTIVES = ("fid", "fid_extrapolated", "fid_local", "intra_fid", "kid")  # of a search; all are minimised
RELATIONS = ("relation_error", "relation_correlation", "relation_spread")  # measured on built-in pictures only
BEST = "best"  # the variant with the values of a search's best trial, trained on the study's own seeds
FIRST_SEED = 20  # of adaptive seeds, which are FIRST_SEED, FIRST_SEED + 1, ...: those below chose the presets
Changes = dict[str, Any]  # {field: value}
Design = Literal["one_at_a_time", "grid", "ladder"]
Factors = dict[str, dict[str, Changes]]  # {factor: {level: changes}}


@dataclass(frozen=True)
class Combination:
    """The levels of one variant and the changes that they make, independent of a preset."""

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
    """One training run of a study. On every machine, cells with equal `key`s are the same."""

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
    """From low to high, both included; whole numbers where the field is one."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Search:
    """What is searched: each field has a range or a tuple of choices. All trials are trained with `seed`.

    `proposed` and `best` are the state of the search: {"trial00": {"optim.lr_g": 3e-4}} and "trial00".
    """

    seed: int
    trials: int
    objective: str
    fields: dict[str, Range | tuple[Any, ...]]
    proposed: dict[str, Changes] = field(default_factory=dict)
    best: str | None = None

    def __str__(self) -> str:
        spaces = ", ".join(
            f"{name} in {space if isinstance(space, Range) else list(space)}" for name, space in self.fields.items()
        )
        return f"{self.trials} trials at seed {self.seed} for the lowest {self.objective} over {spaces}"

    def describe_fields(self) -> dict[str, dict[str, Any]]:
        """{"optim.lr_g": {"low": ..., "high": ..., "log": ...}, "optim.d_steps": {"choices": [1, 2]}}."""
        return {
            name: asdict(space) if isinstance(space, Range) else {"choices": list(space)}
            for name, space in self.fields.items()
        }


@dataclass(frozen=True)
class Adaptive:
    """Seeds that are added until each comparison of the study is decided: `first` at least, `most` at most.

    A ratio from 1 / (1 + `margin`) to 1 + `margin` (0.1 for 10 %) is a difference that does not matter; None where
    every difference matters. Of a metric that is compared by differences it is a share of the reference's |mean|.
    """

    first: int
    most: int
    margin: float | None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(FIRST_SEED, FIRST_SEED + self.most))


@dataclass(frozen=True)
class Study:
    """A checked study at one preset. `base` is the preset with the study's and the command line's `set` applied.

    A search has no factors: its variants are the baseline, the trials proposed so far, and the best one once known.
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
    adaptive: Adaptive | None = None  # then `seeds` has the most that may be trained

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons of the report, (variant, reference), of variants that can be built at this preset.

        These are the contrasts of the file; else each rung of a ladder with the one before; else each variant, or only
        the best of a search, with the baseline.
        """
        built = [variant.name for variant in self.variants() if variant.build_error is None]
        if self.contrasts:
            return [pair for pair in self.contrasts if set(pair) <= set(built)]
        if self.search is None and self.design == "ladder":
            return [(rung, before) for before, rung in itertools.pairwise(built)]
        compared = built if self.search is None else [BEST]
        return [(name, self.baseline) for name in compared if name != self.baseline and self.baseline in built]

    def variants(self) -> list[Variant]:
        chosen = combinations(self.design, self.factors, self.baseline)
        if self.search is not None:
            best = {} if self.search.best is None else {BEST: self.search.proposed[self.search.best]}
            chosen += [Combination(name, {}, changes) for name, changes in {**best, **self.search.proposed}.items()]
        found = []
        for one in chosen:
            config = override(self.base, one.changes)
            values = flatten(config)
            changes = {name: values[name] for name in one.changes}
            found.append(Variant(one.name, one.factors, changes, config, config.build_error()))
        return found

    def cells(self, only: str = "*") -> list[Cell]:
        """The cells that can be trained and whose variant or `variant/seedK` matches the glob.

        Seed by seed, so that a first complete table exists after the first seed. Trials of a search come first.
        """
        built = [variant for variant in self.variants() if variant.build_error is None]
        trials = self.search.proposed if self.search else {}
        chosen = [(v, self.search.seed) for v in built if self.search and v.name in trials]
        chosen += [(v, seed) for seed in self.seeds for v in built if v.name not in trials]
        fields = ("protocol", "preset", "paper", "baseline")
        shared = {"study": self.name, **{field: getattr(self, field) for field in fields}}
        cells = [Cell(**shared, variant=v.name, factors=v.factors, seed=seed, config=v.config) for v, seed in chosen]
        return [cell for cell in cells if any(fnmatch.fnmatchcase(name, only) for name in (cell.variant, cell.name))]

    def at_seeds(self, seeds: Iterable[int]) -> Study:
        return replace(self, seeds=tuple(seeds), adaptive=None)

    def proposing(self, proposed: Mapping[str, Changes], best: str | None) -> Study:
        """This search with its trials so far, and the name of the best one."""
        assert self.search is not None
        return replace(self, search=replace(self.search, proposed=dict(proposed), best=best))

    def with_all_trials(self) -> Study:
        """The study with all trials that a search will have, at the baseline's values, as theirs are not known yet."""
        if self.search is None:
            return self
        names = [trial_name(number) for number in range(self.search.trials)]
        return self.proposing({name: {} for name in names}, best=names[0])

    def plan_of_seeds(self) -> dict[str, Any]:
        """The rule of adaptive seeds as JSON values, with the names of the study file."""
        assert self.adaptive is not None
        seeds = {"first": self.adaptive.first, "most": self.adaptive.most, "margin": self.adaptive.margin}
        return {**seeds, "metric": self.metric, "contrasts": [list(pair) for pair in self.pairs]}

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
            **({"adaptive": asdict(self.adaptive)} if self.adaptive else {}),
        }


def combinations(design: Design, factors: Factors, baseline: str) -> list[Combination]:
    """The variants of a design in the order of the file; `one_at_a_time` puts the baseline first.

    one_at_a_time: the baseline takes the level of that name in every factor; every other level, alone, is a variant.
    grid: the product of all levels, names joined by "+". ladder: the levels of one factor add up, first to last.
    """
    if design == "ladder":
        (factor, levels), *_ = factors.items()
        added_up: Iterable[Changes] = itertools.accumulate(levels.values(), operator.or_)
        return [Combination(level, {factor: level}, changes) for level, changes in zip(levels, added_up, strict=True)]
    if design == "grid":
        products = itertools.product(*factors.values())
        named = [("+".join(chosen), dict(zip(factors, chosen, strict=True))) for chosen in products]
    else:
        home = dict.fromkeys(factors, baseline)
        named = [(baseline, home)]
        named += [(level, {**home, f: level}) for f in factors for level in factors[f] if level != baseline]
    return [
        Combination(name, levels, {k: v for f, level in levels.items() for k, v in factors[f][level].items()})
        for name, levels in named
    ]


def trial_name(number: int) -> str:
    return f"trial{number:02d}"


def is_trial_name(name: str) -> bool:
    return re.fullmatch(r"trial\d{2,}", name) is not None


def why_missing(metric: str, config: Config) -> str:
    """Why runs of `config` lack a metric that others have (sagan/metrics/evaluation.py); "" where they have it."""
    data, extractor = config.data.name, config.eval.extractor
    labelled = config.model.conditioning != "none"
    # A classifier that was trained for a data set is named after it: imagenette-1a2b3c4d.
    knows_classes = labelled and extractor.rpartition("-")[0] == data
    found = f"here model.conditioning={config.model.conditioning} and eval.extractor={extractor}"
    if metric in RELATIONS and data != "embedded":
        return f"is measured on the built-in pictures only, and this preset has {data}"
    if metric == "intra_fid" and not labelled:
        return "needs classes, and model.conditioning=none has none"
    if metric == "class_consistency" and not knows_classes:
        return f"needs labels and an extractor that knows the classes of {data}; {found}"
    if metric == "is" and not knows_classes and not (extractor == "inception" and data != "embedded"):
        return f"needs an extractor whose classes fit the pictures of {data}; {found}"
    return ""


def describe_protocol(preset: str, preset_config: Config, base: Config) -> str:
    """ "embedded", or "embedded + optim.steps=500, data.h_flip=true": cells of one protocol are comparable."""
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
