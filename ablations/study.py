"""The only reader of study files: YAML in, a checked Study out, or every mistake at once with its line and column.

study_file.py says what each field must be; here is checked what the fields mean together.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import ValidationError

from ablations.document import Document, Position, StudyError, did_you_mean, hint, read_value
from ablations.plan import (
    BEST,
    Arm,
    Changes,
    Range,
    Search,
    Study,
    arms,
    describe_protocol,
    is_trial_name,
    show,
    unmeasured,
)
from ablations.study_file import NAME, NAME_RULE, SPACE_KINDS, RangeBlock, SearchBlock, StudyFile
from sagan.config import Config, field_names, flatten, override
from sagan.presets import PRESETS

_MAX_NAME = 200  # of a variant of several factors; a file's name has 255
_MAX_CELLS = 20_000
_TAKEN = "is changed by {} already; a field belongs to one factor, to search or to --set, drop one"
_ENDPOINT = ("eval.endpoint", "eval.every", "optim.steps")  # what decides whether a run has enough evaluations
# What stands for required fields that are missing or wrong, so that the others can be looked at.
_STAND_INS = {"name": "x", "question": "x", "preset": next(iter(PRESETS)), "seeds": [0], "baseline": "x"}


def read_study(path: Path, preset: str | None = None, changes: Mapping[str, str] | None = None) -> Study:
    """The study in `path`, at `preset` in place of its own, with `changes` ({field: YAML}) over its `set`.

    Raises StudyError with all mistakes of the file and the overrides.
    """
    document = Document(path)
    wrong: set[str] = set()
    try:
        file = StudyFile.model_validate(document.content)
    except ValidationError as error:
        content = copy.deepcopy(document.content)
        for mistake in error.errors():
            position = tuple(str(part) for part in mistake["loc"] if part not in SPACE_KINDS)
            wrong.add(position[0])
            _note(document, position, mistake["type"], str(mistake.get("ctx", {}).get("error")))
            _remove(content, position[:-1] if mistake["type"] == "missing" and position[1:] else position)
        try:
            file = StudyFile.model_validate({**_STAND_INS, **content})
        except ValidationError:
            raise StudyError(document.errors()) from None
    return _Checker(document, file, wrong, preset, changes or {}).study()


def _note(document: Document, position: Position, kind: str, message: str) -> None:
    """Notes a mistake that the model found, at its place in the file."""
    if kind == "missing":
        document.error(position, "is missing; it is required here")
    elif kind == "extra_forbidden":
        blocks: dict[int, type[BaseModel]] = {1: StudyFile, 2: SearchBlock}
        fields = blocks.get(len(position), RangeBlock).model_fields
        document.error(position, f"no such field; {did_you_mean(position[-1], fields)}", at="key")
    elif position[-1] == "[key]":
        document.error(position[:-1], message, at="key")
    else:
        document.error(position, message)


def _remove(content: dict[str, Any], position: Position) -> None:
    """Removes the value there, or the whole list that holds it: places in a list must stay what they are."""
    for key in position[:-1]:
        if not isinstance(content.get(key), dict):
            content.pop(key, None)
            return
        content = content[key]
    content.pop(position[-1], None)


class _Checker:
    """Checks what the fields mean together; what is wrong is noted in the document, and checking goes on.

    `wrong` names the fields with mistakes that are told already: what hangs on one of these is not checked.
    """

    def __init__(
        self, document: Document, file: StudyFile, wrong: set[str], preset: str | None, changes: Mapping[str, str]
    ) -> None:
        self._document, self._file, self._wrong = document, file, wrong
        self._command_errors: list[str] = []  # mistakes on the command line, which has no lines
        self._changes: Changes = {}
        for name, text in changes.items():
            try:
                self._changes[name] = read_value(text)
            except ValueError as error:
                self._error(("--set", name), str(error))
        self._preset = file.preset if preset is None else preset
        if self._preset not in PRESETS:
            rule = f"must be one of {', '.join(PRESETS)}, got {self._preset!r}{hint(self._preset, PRESETS)}"
            self._error(("--preset",), rule)

    def _error(self, position: Position, message: str, at: Literal["key", "value"] = "value") -> None:
        """Notes a mistake at its place in the file, or by an option: ("--set", "optim.steps")."""
        if position[0].startswith("--"):
            self._command_errors.append(f"{' '.join(position)}: {message}")
        else:
            self._document.error(position, message, at)

    def study(self) -> Study:
        file, written = self._file, self._document.content
        if not written.keys() & {"factors", "search"}:
            self._error(("factors",), "is missing; a study must have it, or search in its place")
        if "search" in written:
            for field in written.keys() & {"factors", "design", "contrasts"}:
                self._error((field,), "has no place beside search, which chooses the variants; drop one", at="key")
        self._check_each_once(("seeds",), file.seeds)
        # A wrong preset must not hide the mistakes below it: they are looked for at any preset.
        original = PRESETS.get(self._preset, PRESETS[file.preset])
        base = self._base(original)
        levels = self._levels(base)
        search = self._search(base) if file.search else None
        metric = file.metric or ("relation_error" if base.data.name == "embedded" else "fid")
        if not self._wrong & {"preset", "metric"}:
            self._check_metric(metric, base, levels)
        sound = file.factors and not self._wrong & {"factors", "design", "baseline"}
        variants = self._variants() if sound else []
        self._check_contrasts([variant.name for variant in variants])
        if not (self._command_errors or self._document.errors()):
            self._check_endpoint(base, levels, variants)
        if errors := self._command_errors + self._document.errors():
            raise StudyError(errors)
        return Study(
            name=file.name,
            question=file.question.strip(),
            preset=self._preset,
            paper=file.paper or None,
            seeds=tuple(file.seeds),
            baseline=file.baseline,
            design=file.design,
            factors=file.factors,
            base=base,
            protocol=describe_protocol(self._preset, original, base),
            path=self._document.path,
            text=self._document.text,
            search=search,
            metric=metric,
            contrasts=tuple((variant, reference) for variant, reference in file.contrasts),
        )

    def _base(self, preset: Config) -> Config:
        """The preset with what the study sets for all variants, and with what the command line sets."""
        base = self._applied(preset, self._file.set, ("set",))
        base = self._applied(base, self._changes, ("--set",))
        if "eval.endpoint" not in {*self._file.set, *self._changes}:  # a preset's own is for its own number of steps
            base = override(base, {"eval.endpoint": min(base.eval.endpoint, base.evaluations)})
        return base

    def _levels(self, base: Config) -> dict[tuple[str, str], Config]:
        """{(factor, level): what it alone makes of the base}."""
        found: dict[tuple[str, str], Config] = {}
        owner: dict[str, Position] = {name: ("--set",) for name in self._changes}
        for factor, levels in self._file.factors.items():
            for level, changes in levels.items():
                position = ("factors", factor, level)
                for name in changes:
                    if (first := owner.setdefault(name, position[:2])) != position[:2]:
                        self._error((*position, name), _TAKEN.format(".".join(first)), at="key")
                found[factor, level] = self._applied(base, changes, position)
        return found

    def _applied(self, config: Config, changes: Changes, position: Position) -> Config:
        """`config` with the changes that it takes; the others are noted, each at its own place."""
        for name, value in changes.items():
            try:
                config = override(config, {name: value})
            except ValueError as error:
                rule = str(error).removeprefix(f"{name}: ")
                self._error((*position, name), rule, at="key" if rule.startswith("no such field") else "value")
        return config

    def _check_metric(self, metric: str, base: Config, levels: Mapping[tuple[str, str], Config]) -> None:
        if rule := unmeasured(metric, base):
            self._error(("metric",), f"{rule}, got {metric!r}; write fid")
            return
        for level, config in levels.items():
            if rule := unmeasured(metric, config):
                lacks = f"has not the study's metric {metric}, which {rule}"
                self._error(("factors", *level), f"{lacks}; drop the level, or the metric")

    def _variants(self) -> list[Arm]:
        """The variants that the factors make; [] with the reason noted where they make none."""
        design, factors, baseline = self._file.design, self._file.factors, self._file.baseline
        count = (math.prod if design == "grid" else sum)(map(len, factors.values()))
        if count * len(self._file.seeds) > _MAX_CELLS:  # before they are made: a grid would take all memory
            got = f"{count:,} variants x {len(self._file.seeds):,} seeds"
            self._error(("factors",), f"must give {_MAX_CELLS:,} cells at most, got {got}; drop levels or seeds")
            return []
        if design == "ladder" and len(factors) > 1:
            self._error(("factors",), f"a ladder climbs one factor, got {', '.join(factors)}; choose grid, or keep one")
            return []
        lacking = [name for name in factors if baseline not in factors[name]] if design == "one_at_a_time" else []
        for factor in lacking:
            close = did_you_mean(baseline, factors[factor])
            self._error(("baseline",), f"must be a level of every factor, got {baseline!r}; {factor}: {close}")
        if lacking:
            return []
        variants = arms(design, factors, baseline)
        names = Counter(variant.name for variant in variants)
        if baseline not in names:
            self._error(("baseline",), f"must name a variant, got {baseline!r}; {did_you_mean(baseline, names)}")
        for name in names:
            if names[name] > 1:
                position = ("factors", [factor for factor in factors if name in factors[factor]][-1], name)
                self._error(position, "is a level of two factors; rename one, for levels name variants", at="key")
            if len(name) > _MAX_NAME:
                rule = f"a variant's name must have {_MAX_NAME} characters at most, because it names files"
                self._error(("factors",), f"{rule}, got {len(name)} in {name!r}; shorten its levels")
        return variants

    def _check_contrasts(self, names: list[str]) -> None:
        for index, pair in enumerate(self._file.contrasts):
            for place, name in enumerate(pair):
                if names and name not in names:
                    rule = f"must name a variant, got {name!r}; {did_you_mean(name, names)}"
                    self._error(("contrasts", str(index), str(place)), rule)
            if pair[0] == pair[1]:
                rule = f"must compare two variants, got {pair[0]!r} twice"
                self._error(("contrasts", str(index)), f"{rule}; name another, or drop the pair")
        self._check_each_once(("contrasts",), [tuple(sorted(pair)) for pair in self._file.contrasts])

    def _check_endpoint(self, base: Config, levels: Mapping[tuple[str, str], Config], variants: Iterable[Arm]) -> None:
        """Notes a score over more evaluations than the run has: of all variants, of one level's, or of levels together.

        It is told at the field that decides how many evaluations there are.
        """
        factors = self._file.factors
        stages: list[list[tuple[Config, Changes, Position]]] = [
            [(base, self._changes, ("--set",))],
            [(base, self._file.set, ("set",))],
            [
                (config, factors[factor][level], ("factors", factor, level))
                for (factor, level), config in levels.items()
            ],
            [(override(base, variant.changes), variant.changes, ("factors", variant.name)) for variant in variants],
        ]
        for stage in stages:
            for config, changes, position in stage:
                field = next((name for name in _ENDPOINT if name in changes), None)
                try:
                    config.check_endpoint()
                except ValueError as error:
                    rule = str(error).removeprefix("eval.endpoint: ")
                    if field is not None:
                        self._error((*position, field), rule if field == "eval.endpoint" else f"eval.endpoint {rule}")
            if self._command_errors or self._document.errors():
                return

    def _search(self, base: Config) -> Search:
        block = self._file.search
        baseline = self._file.baseline
        is_taken = baseline == BEST or is_trial_name(baseline)
        if is_taken or not re.fullmatch(NAME, baseline):
            rule = "not be a name that the search gives" if is_taken else NAME_RULE
            self._error(("baseline",), f"must {rule}, got {baseline!r}; write preset")
        if block.seed in self._file.seeds and "seeds" not in self._wrong:
            # The best of many trials at a seed is partly the luckiest at that seed.
            rule = f"must not be among seeds, which confirm the best trial, got {block.seed}; choose another"
            self._error(("search", "seed"), rule)
        fields: dict[str, Range | tuple[Any, ...]] = {}
        for name, space in block.fields.items():
            position = ("search", "fields", name)
            if name not in field_names():
                self._error(position, f"no such field; {did_you_mean(name, field_names())}", at="key")
            elif name in self._changes:
                self._error(position, _TAKEN.format("--set"), at="key")
            elif not isinstance(space, RangeBlock):
                values = tuple(self._value(base, name, str(index), value) for index, value in enumerate(space))
                self._check_each_once(position, values)
                fields[name] = values
            elif type(flatten(base)[name]) not in (int, float):
                self._error(position, "holds no number, so it has no range; list its choices")
            else:
                low, high = (self._value(base, name, end, getattr(space, end)) for end in ("low", "high"))
                if None not in (low, high) and not low < high:
                    self._error(position, f"low must be below high, got {low} and {high}; exchange them")
                elif space.log and low is not None and low <= 0:
                    self._error((*position, "low"), f"must be above 0 where log is true, got {low}; drop log")
                fields[name] = Range(low, high, space.log)
        return Search(block.seed, block.trials, block.objective, fields)

    def _value(self, base: Config, name: str, place: str, value: Any) -> Any:
        """`value` as the field holds it; None where the field refuses it or no network can be built with it."""
        position = ("search", "fields", name, place)
        try:
            config = override(base, {name: value})
            config.check_endpoint()
        except ValueError as error:
            self._error(position, str(error).removeprefix(f"{name}: "))
            return None
        if (build_error := config.build_error()) and base.build_error() is None:
            self._error(position, f"{build_error}, got {value!r}; drop it, or choose a larger preset")
            return None
        return flatten(config)[name]

    def _check_each_once(self, position: Position, values: Sequence[Any]) -> None:
        seen = set[Any]()
        for index, value in enumerate(values):
            if value in seen and value is not None:
                self._error((*position, str(index)), f"each once, got {show(value)} again; drop it")
            seen.add(value)
