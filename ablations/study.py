"""The only reader of study files: YAML in, a checked Study out, or every mistake at once with its line and column.

study_file.py has the rules for each field; here are those for several fields together.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import ValidationError

from ablations.document import Document, Position, StudyError, did_you_mean, hint, read_value
from ablations.plan import (
    BEST,
    UNDIRECTED,
    Adaptive,
    Changes,
    Combination,
    Range,
    Search,
    Study,
    combinations,
    describe_protocol,
    is_trial_name,
    show,
    why_missing,
)
from ablations.study_file import KINDS, NAME, NAME_RULE, AdaptiveBlock, RangeBlock, SearchBlock, StudyFile
from sagan.config import Config, field_names, flatten, override
from sagan.presets import PRESETS

_MAX_NAME = 200  # characters of a variant of several factors; file names may have 255
_MAX_CELLS = 20_000
_CHANGED_TWICE = "is changed by {} already; change each field in one factor only, or in search or --set only"
_ENDPOINT = ("eval.endpoint", "eval.every", "optim.steps")  # the fields that Config.check_endpoint compares
# Values for required fields that are missing or wrong, so that the others can be checked.
_PLACEHOLDERS = {"name": "x", "question": "x", "preset": next(iter(PRESETS)), "seeds": [0], "baseline": "x"}


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
            position = tuple(str(key) for key in mistake["loc"] if key not in KINDS)
            wrong.add(position[0])
            message = str(mistake.get("ctx", {}).get("error"))
            if mistake["type"] == "missing":
                document.error(position, "is missing; it is required here")
            elif mistake["type"] == "extra_forbidden":
                blocks: dict[str, type[BaseModel]] = {"": StudyFile, "seeds": AdaptiveBlock, "search": SearchBlock}
                fields = blocks.get(".".join(position[:-1]), RangeBlock).model_fields
                document.error(position, f"no such field; {did_you_mean(position[-1], fields)}", at="key")
            elif position[-1] == "[key]":
                document.error(position[:-1], message, at="key")
            else:
                document.error(position, message)
            is_inner = mistake["type"] == "missing" and position[1:]
            _remove(content, position[:1] if position[0] == "seeds" else position[:-1] if is_inner else position)
        try:
            file = StudyFile.model_validate({**_PLACEHOLDERS, **content})
        except ValidationError:
            raise StudyError(document.errors()) from None
    return _Checker(document, file, wrong, preset, changes or {}).study()


def _remove(content: dict[str, Any], position: Position) -> None:
    """Remove the value at `position`, or the list that holds it, because indices in a list must not change."""
    for key in position[:-1]:
        if not isinstance(content.get(key), dict):
            content.pop(key, None)
            return
        content = content[key]
    content.pop(position[-1], None)


class _Checker:
    """Checks the rules for several fields; mistakes are added to the document, and checking continues.

    `wrong` are the fields with mistakes that were found before: rules that depend on these are not checked.
    """

    def __init__(
        self, document: Document, file: StudyFile, wrong: set[str], preset: str | None, changes: Mapping[str, str]
    ) -> None:
        self._document, self._file, self._wrong = document, file, wrong
        block = file.seeds if isinstance(file.seeds, AdaptiveBlock) else None
        margin = float(file.margin.rstrip("% ")) / 100 if file.margin else None
        self._adaptive = Adaptive(block.first, block.most, margin) if block else None
        self._seeds = self._adaptive.seeds if self._adaptive else tuple(cast(list[int], file.seeds))
        self._error = document.error
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

    def study(self) -> Study:
        file, written = self._file, self._document.content
        if not written.keys() & {"factors", "search"}:
            self._error(("factors",), "is missing; a study must have it, or search in its place")
        if "search" in written:
            for field in written.keys() & {"factors", "design", "contrasts"}:
                self._error((field,), "cannot be used with search, which chooses the variants; drop one", at="key")
        self._check_each_once(("seeds",), self._seeds)
        # With a wrong preset the other mistakes are still found, at some other preset.
        original = PRESETS.get(self._preset, PRESETS[file.preset])
        base = self._applied(original, file.set, ("set",))
        base = self._applied(base, self._changes, ("--set",))
        if "eval.endpoint" not in {*file.set, *self._changes}:  # the preset's value is meant for its number of steps
            base = override(base, {"eval.endpoint": min(base.eval.endpoint, base.evaluations)})
        levels = self._levels(base)
        search = self._search(base) if file.search else None
        metric = file.metric or ("relation_error" if base.data.name == "embedded" else "fid")
        self._check_adaptive(metric)
        if not self._wrong & {"preset", "metric"}:
            base_rule = why_missing(metric, base)
            if base_rule:
                self._error(("metric",), f"{base_rule}, got {metric!r}; write fid")
            for level, config in levels.items():
                if not base_rule and (rule := why_missing(metric, config)):
                    lacks = f"lacks the study's metric {metric}, which {rule}"
                    self._error(("factors", *level), f"{lacks}; drop the level, or the metric")
        are_sound = file.factors and not self._wrong & {"factors", "design", "baseline"}
        variants = self._variants() if are_sound else []
        names = [variant.name for variant in variants]
        for index, pair in enumerate(file.contrasts):
            for place, name in enumerate(pair):
                if names and name not in names:
                    rule = f"must name a variant, got {name!r}; {did_you_mean(name, names)}"
                    self._error(("contrasts", str(index), str(place)), rule)
            if pair[0] == pair[1]:
                rule = f"must compare two variants, got {pair[0]!r} twice"
                self._error(("contrasts", str(index)), f"{rule}; name another, or drop the pair")
        self._check_each_once(("contrasts",), [tuple(sorted(pair)) for pair in file.contrasts])
        if not self._document.errors():
            self._check_endpoint(base, levels, variants)
            self._check_effects(base, variants)
        if errors := self._document.errors():
            raise StudyError(errors)
        study = Study(
            name=file.name,
            question=file.question.strip(),
            preset=self._preset,
            paper=file.paper or None,
            seeds=self._seeds,
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
            adaptive=self._adaptive,
        )
        planned = study.variants()
        lacking = [f"{variant.name} {variant.build_error}" for variant in planned if variant.build_error]
        if 0 < len(lacking) < len(planned) and not study.pairs:  # where none can be built, there is nothing to run
            rule = f"no comparison can be made at preset {self._preset}, because {', '.join(lacking)}"
            self._error(("baseline",), f"{rule}, got baseline {file.baseline!r}; choose another preset or baseline")
        elif study.adaptive and not study.pairs:
            self._error(("seeds",), "must be a list, because no comparison of the study can be made at this preset")
        if errors := self._document.errors():
            raise StudyError(errors)
        return study

    def _check_adaptive(self, metric: str) -> None:
        file, seeds = self._file, self._adaptive
        if seeds is None:
            if file.margin and "seeds" not in self._wrong:
                self._error(("margin",), "belongs to adaptive seeds; drop it, or write seeds: {first: 3, most: 12}")
            return
        if seeds.first > seeds.most:
            rule = f"must not be above most, got {seeds.first} and {seeds.most}; exchange them"
            self._error(("seeds", "first"), rule)
        if file.search:
            self._error(("seeds",), "must be a list with search, whose best trial is compared once; write [20, 21, 22]")
        if metric in UNDIRECTED:
            rule = f"must have a better direction with adaptive seeds, got {metric}; choose another, or a list of seeds"
            self._error(("metric",), rule)

    def _levels(self, base: Config) -> dict[tuple[str, str], Config]:
        """{(factor, level): the base with the changes of this level only}."""
        found: dict[tuple[str, str], Config] = {}
        owner: dict[str, Position] = {name: ("--set",) for name in self._changes}
        for factor, levels in self._file.factors.items():
            for level, changes in levels.items():
                position = ("factors", factor, level)
                for name in changes:
                    if (first := owner.setdefault(name, position[:2])) != position[:2]:
                        self._error((*position, name), _CHANGED_TWICE.format(".".join(first)), at="key")
                found[factor, level] = self._applied(base, changes, position)
        return found

    def _applied(self, config: Config, changes: Changes, position: Position) -> Config:
        """`config` with those changes that are valid; each of the others is an error at its position."""
        for name, value in changes.items():
            try:
                config = override(config, {name: value})
            except ValueError as error:
                rule = str(error).removeprefix(f"{name}: ")
                self._error((*position, name), rule, at="key" if rule.startswith("no such field") else "value")
        return config

    def _variants(self) -> list[Combination]:
        """The variants of the factors; [] after an error where they cannot be combined."""
        design, factors, baseline = self._file.design, self._file.factors, self._file.baseline
        count = (math.prod if design == "grid" else sum)(map(len, factors.values()))
        if count * len(self._seeds) > _MAX_CELLS:  # checked first: a large grid would take all memory
            got = f"{count:,} variants x {len(self._seeds):,} seeds"
            self._error(("factors",), f"must give {_MAX_CELLS:,} cells at most, got {got}; drop levels or seeds")
            return []
        if design == "ladder" and len(factors) > 1:
            self._error(("factors",), f"a ladder has one factor, got {', '.join(factors)}; choose grid, or keep one")
            return []
        lacking = [name for name in factors if baseline not in factors[name]] if design == "one_at_a_time" else []
        for factor in lacking:
            close = did_you_mean(baseline, factors[factor])
            self._error(("baseline",), f"must be a level of every factor, got {baseline!r}; {factor}: {close}")
        if lacking:
            return []
        variants = combinations(design, factors, baseline)
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

    def _check_endpoint(
        self, base: Config, levels: Mapping[tuple[str, str], Config], variants: Iterable[Combination]
    ) -> None:
        """An eval.endpoint of more evaluations than a run has is an error, at the field that causes it.

        Later stages are checked only where earlier ones have no error: all variants, single levels, combined levels.
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
            if self._document.errors():
                return

    def _check_effects(self, base: Config, variants: Sequence[Combination]) -> None:
        """A change that has no effect (`Config.no_effect`) is an error. One that a level makes must have an effect in
        every variant with that level; one of `set`, `--set` or search in at least one variant."""
        file, searched = self._file, self._file.search.fields if self._file.search else {}
        configs = [override(base, variant.changes) for variant in variants] or [base]
        found: dict[Position, str] = {}
        if "optim.ttur" not in searched:  # else each trial says which rates it takes
            for_all = {("set",): file.set, ("--set",): self._changes, ("search", "fields"): searched}
            for position, names in for_all.items():
                for name in names:
                    if all(rules := [config.no_effect(name) for config in configs]):
                        found[*position, name] = rules[0]
        for variant, config in zip(variants, configs, strict=False):
            for factor, level in variant.factors.items():
                # A variant that only keeps the baseline's level of this factor is not checked.
                is_kept = level == file.baseline != variant.name
                for name in file.factors[factor][level]:
                    if (rule := config.no_effect(name)) and not is_kept:
                        found.setdefault(("factors", factor, level, name), f"{rule} (variant {variant.name})")
        for place, rule in found.items():
            self._error(place, rule)

    def _search(self, base: Config) -> Search:
        block = self._file.search
        baseline = self._file.baseline
        is_taken = baseline == BEST or is_trial_name(baseline)
        if is_taken or not re.fullmatch(NAME, baseline):
            rule = "not be a name that the search gives" if is_taken else NAME_RULE
            self._error(("baseline",), f"must {rule}, got {baseline!r}; write preset")
        if block.seed in self._seeds and "seeds" not in self._wrong:
            # Selected as the best of many at its own seed, a trial would score too well there.
            rule = f"must not be among seeds, which confirm the best trial, got {block.seed}; choose another"
            self._error(("search", "seed"), rule)
        fields: dict[str, Range | tuple[Any, ...]] = {}
        for name, space in block.fields.items():
            position = ("search", "fields", name)
            if name not in field_names():
                self._error(position, f"no such field; {did_you_mean(name, field_names())}", at="key")
            elif name in self._changes:
                self._error(position, _CHANGED_TWICE.format("--set"), at="key")
            elif not isinstance(space, RangeBlock):
                values = tuple(self._value(base, name, str(index), value) for index, value in enumerate(space))
                self._check_each_once(position, values)
                fields[name] = values
            elif type(flatten(base)[name]) not in (int, float):
                self._error(position, "is not a number, so it has no range; list its choices")
            else:
                low, high = (self._value(base, name, end, getattr(space, end)) for end in ("low", "high"))
                if None not in (low, high) and not low < high:
                    self._error(position, f"low must be below high, got {low} and {high}; exchange them")
                elif space.log and low is not None and low <= 0:
                    self._error((*position, "low"), f"must be above 0 where log is true, got {low}; drop log")
                fields[name] = Range(low, high, space.log)
        return Search(block.seed, block.trials, block.objective, fields)

    def _value(self, base: Config, name: str, place: str, value: Any) -> Any:
        """`value` in the type of the field; None after an error where it is invalid or cannot be built."""
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
                self._error((*position, str(index)), f"must not repeat a value, got {show(value)} twice; drop one")
            seen.add(value)
