"""What a search may choose: the `search` block of a study file, checked and located like the rest of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablations.document import Document, Position, did_you_mean, hint
from sagan.config import Config, field_names, flatten, override
from sagan.options import MAX_SEED

Changes = dict[str, Any]

OBJECTIVES = ("fid", "fid_extrapolated", "fid_local", "intra_fid", "kid")  # lower is better in all
_MAX_TRIALS = 10_000
BEST = "best"  # the variant of the best trial, run again on the study's own seeds

_REQUIRED = ("seed", "trials", "fields")
_KEYS = (*_REQUIRED, "objective")
_BOUNDS = ("low", "high")


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


def trial_name(number: int) -> str:
    return f"trial{number:02d}"


def is_trial_name(name: str) -> bool:
    return re.fullmatch(r"trial\d{2,}", name) is not None


def read_search(document: Document, base: Config, owner: Mapping[str, Position]) -> Search:
    """The search of `document`, whose mistakes are noted there: with one, what is returned is not to be used.

    `owner` says what sets a field already; a search over it would silently undo that.
    """
    return _Checker(document, base, owner).search()


class _Checker:
    def __init__(self, document: Document, base: Config, owner: Mapping[str, Position]) -> None:
        self._document, self._base, self._owner = document, base, owner
        self._content = document.content["search"]

    def search(self) -> Search:
        if not isinstance(self._content, dict):
            self._error((), f"must be a mapping, got {self._content!r}; see studies/ttur_search.yaml")
            self._content = {}
        else:
            self._check_keys()
        return Search(self._seed(), self._trials(), self._objective(), self._fields())

    def _error(self, path: Position, message: str, on_key: bool = False) -> None:
        self._document.error(("search", *path), message, "key" if on_key else "value")

    def _check_keys(self) -> None:
        for key in self._content:
            if key not in _KEYS:
                self._error((key,), f"no such field; {did_you_mean(key, _KEYS)}", on_key=True)
        for key in _REQUIRED:
            if key not in self._content:
                self._error((key,), "is missing; a search must have it")

    def _seed(self) -> int:
        seed, seeds = self._content.get("seed", 0), self._document.content.get("seeds")
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            self._error(("seed",), f"must be a whole number in 0..{MAX_SEED}, got {seed!r}")
            return 0
        if "seed" in self._content and isinstance(seeds, list) and seed in seeds:
            # The best of many trials at a seed is partly the luckiest at that seed.
            self._error(("seed",), f"must not be among seeds, which confirm the best trial, got {seed}; choose another")
        return seed

    def _trials(self) -> int:
        trials = self._content.get("trials", 1)
        if type(trials) is not int or trials < 1:
            self._error(("trials",), f"must be a whole number above 0, got {trials!r}")
            return 1
        if trials > _MAX_TRIALS:
            self._error(("trials",), f"must be {_MAX_TRIALS} at most, got {trials}")
            return 1
        return trials

    def _objective(self) -> str:
        objective = self._content.get("objective", "fid")
        if objective not in OBJECTIVES:
            close = hint(objective, OBJECTIVES)
            self._error(("objective",), f"must be one of {', '.join(OBJECTIVES)}, got {objective!r}{close}")
            return "fid"
        return str(objective)

    def _fields(self) -> dict[str, Range | tuple[Any, ...]]:
        fields = self._content.get("fields", {})
        if "fields" in self._content and (not isinstance(fields, dict) or not fields):
            self._error(("fields",), f"must map fields to ranges or choices, got {fields!r}")
            return {}
        found = {name: self._space(name, space) for name, space in fields.items()}
        return {name: space for name, space in found.items() if space is not None}

    def _space(self, name: str, space: Any) -> Range | tuple[Any, ...] | None:
        path = ("fields", name)
        if name not in field_names():
            self._error(path, f"no such field; {did_you_mean(name, field_names())}", on_key=True)
        elif name in self._owner:
            taken = ".".join(self._owner[name])
            self._error(path, f"is changed by {taken} already; a field belongs to one of them, drop one", on_key=True)
        elif isinstance(space, list) and len(space) > 1:
            return self._choices(name, space)
        elif isinstance(space, dict):
            return self._range(name, space)
        else:
            rule = "must be a list of two choices or more, or a range"
            self._error(path, f"{rule}, got {space!r}; write [1, 2] or {{low: 1e-4, high: 1e-3, log: true}}")
        return None

    def _choices(self, name: str, choices: list[Any]) -> tuple[Any, ...]:
        found: list[Any] = []
        for index, choice in enumerate(choices):
            path = ("fields", name, str(index))
            value = self._value(name, choice, path)
            if value in found:
                self._error(path, f"each choice once, got {choice!r} again; drop it")
            found.append(value)
        return tuple(found)

    def _range(self, name: str, space: dict[str, Any]) -> Range | None:
        path = ("fields", name)
        kind = type(flatten(self._base)[name])
        if kind not in (int, float):
            self._error(path, "holds no number, so it has no range; list its choices")
            return None
        for key in space:
            if key not in (*_BOUNDS, "log"):
                self._error((*path, key), f"no such field; {did_you_mean(key, (*_BOUNDS, 'log'))}", on_key=True)
        missing = [key for key in _BOUNDS if key not in space]
        for key in missing:
            self._error((*path, key), "is missing; a range must have it")
        low, high = (self._value(name, space[key], (*path, key)) if key in space else None for key in _BOUNDS)
        log = space.get("log", False)
        if not isinstance(log, bool):
            self._error((*path, "log"), f"must be true or false, got {log!r}")
        if low is None or high is None:
            return None
        if not low < high:
            self._error(path, f"low must be below high, got {low} and {high}")
        elif log is True and low <= 0:
            self._error((*path, "low"), f"must be above 0 where log is true, got {low}")
        return Range(low, high, log is True)

    def _value(self, name: str, value: Any, path: Position) -> Any:
        """`value` as the field holds it; None where the field refuses it or no network can be built with it."""
        try:
            config = override(self._base, {name: value})
            config.check_endpoint()
        except ValueError as error:
            self._error(path, str(error).removeprefix(f"{name}: "))
            return None
        obstacle = config.obstacle()
        if obstacle and self._base.obstacle() is None:
            self._error(path, f"{obstacle}, got {value!r}; drop it, or choose a larger preset")
            return None
        return flatten(config)[name]
