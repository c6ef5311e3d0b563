"""The only reader of study files: YAML in, a checked Study out, or every mistake at once with its line and column."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ablations.document import Document, Position, StudyError, did_you_mean, hint
from ablations.plan import METRICS, RELATIONS, Arm, Design, Factors, Study, arms, describe_protocol
from ablations.space import BEST, Changes, is_trial_name, read_search
from sagan.config import Config, override
from sagan.options import MAX_SEED
from sagan.presets import PRESETS

_REQUIRED = ("name", "question", "preset", "seeds", "baseline")
_FIELDS = (*_REQUIRED, "factors", "paper", "design", "set", "search", "metric", "contrasts")
_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,63}")
_NAME_RULE = "must be 1 to 64 letters, digits or any of _ - + . and not begin with a dot, because it names files"
_MAX_NAME = 200  # of a variant of several factors; a file's name has 255
_MAX_TEXT = 1_000
_MAX_CELLS = 20_000
_ENDPOINT = ("eval.endpoint", "eval.every", "optim.steps")  # what decides whether a run has enough evaluations


def read_study(path: Path, preset: str | None = None, changes: Mapping[str, str] | None = None) -> Study:
    """The study in `path`, at `preset` in place of its own, with `changes` ({field: text}) over its `set`.

    Raises StudyError with all mistakes of the file and the overrides.
    """
    document = Document(path)
    return _Checker(document, preset, changes or {}).study()


class _Checker:
    """Checks a document field by field; what is wrong is noted in the document, and checking goes on."""

    def __init__(self, document: Document, preset: str | None, changes: Mapping[str, str]) -> None:
        self._document = document
        self._content = cast(dict[str, Any], document.content)
        self._preset = preset
        self._changes = changes
        self._command_errors: list[str] = []  # mistakes on the command line, which has no lines
        self._levels: dict[Position, Config] = {}  # what each level alone makes of the base

    def study(self) -> Study:
        self._check_fields()
        name, question = self._name(("name",)), self._text(("question",))
        paper = self._name(("paper",)) if "paper" in self._content else None
        preset = self._preset_name()
        seeds = self._seeds()
        design = self._design()
        # A wrong preset must not hide the mistakes below it: they are looked for at any preset.
        original = PRESETS[preset] if preset in PRESETS else next(iter(PRESETS.values()))
        base = self._base(original)
        owner: dict[str, Position] = {name: ("--set",) for name in self._changes}
        factors = self._factors(base, owner)
        search = read_search(self._document, base, owner) if "search" in self._content else None
        if search is not None:
            baseline = self._baseline_of_search()
        else:
            baseline = self._baseline(design, factors, seeds) if design and factors else ""
        metric = self._metric(base)
        contrasts = self._contrasts(design, factors, baseline, search is not None)
        if design and factors and not (self._command_errors or self._document.errors()):
            self._check_arms(base, arms(design, factors, baseline))
        if errors := self._command_errors + self._document.errors():
            raise StudyError(errors)
        assert design is not None
        return Study(
            name=name,
            question=question,
            preset=preset,
            paper=paper,
            seeds=seeds,
            baseline=baseline,
            design=design,
            factors=factors,
            base=base,
            protocol=describe_protocol(preset, original, base),
            path=self._document.path,
            text=self._document.text,
            search=search,
            metric=metric,
            contrasts=contrasts,
        )

    def _error(self, path: Position, message: str, at: Literal["key", "value"] = "value") -> None:
        self._document.error(path, message, at)

    def _check_fields(self) -> None:
        for field in self._content:
            if field not in _FIELDS:
                self._error((field,), f"no such field; {did_you_mean(field, _FIELDS)}", at="key")
        for field in _REQUIRED:
            if field not in self._content:
                self._error((field,), "is missing; a study must have it")
        if "search" in self._content:
            for field in ("factors", "design"):
                if field in self._content:
                    self._error((field,), "has no place beside search, which chooses the variants; drop one", at="key")
        elif "factors" not in self._content:
            self._error(("factors",), "is missing; a study must have it, or search in its place")

    def _text(self, path: Position) -> str:
        value = self._content.get(path[0], "")
        if path[0] in self._content and not (isinstance(value, str) and value.strip()):
            self._error(path, f"must be a text, got {value!r}; write it in quotes")
        elif not all(char.isprintable() or char in "\n\t" for char in str(value)):
            self._error(path, f"must have no control characters nor half ones, got {value!r}; take them out")
        elif len(str(value)) > _MAX_TEXT:
            self._error(path, f"must have {_MAX_TEXT} characters at most, got {len(value)}; shorten it")
        return str(value).strip()

    def _metric(self, base: Config) -> str:
        """The primary metric; by default relation_error on the built-in pictures, fid elsewhere."""
        built_in = base.data.name == "embedded"
        metric = self._content.get("metric", "relation_error" if built_in else "fid")
        if metric not in METRICS:
            self._error(("metric",), f"must be one of {', '.join(METRICS)}, got {metric!r}{hint(metric, METRICS)}")
        elif rule := _unmeasured(metric, base):
            self._error(("metric",), f"{rule}, got {metric!r}; write fid")
        else:
            for path, config in self._levels.items():
                if rule := _unmeasured(metric, config):
                    self._error(
                        path, f"has not the study's metric {metric}, which {rule}; drop the level, or the metric"
                    )
        return str(metric)

    def _contrasts(
        self, design: Design | None, factors: Factors, baseline: str, is_search: bool
    ) -> tuple[tuple[str, str], ...]:
        """The pairs (variant, reference) that the study compares; () where it names none."""
        stored = self._content.get("contrasts")
        if "contrasts" not in self._content:
            return ()
        if not isinstance(stored, list) or not stored:
            self._error(("contrasts",), f"must be a list of pairs, got {stored!r}; write [[feat32, none]]")
            return ()
        if is_search:
            self._error(("contrasts",), "has no place beside search, which compares its best; drop it", at="key")
            return ()
        sound = design and factors and baseline and not self._document.errors()  # else there are no variants to name
        names = [arm.name for arm in arms(design, factors, baseline)] if sound and design else []
        found: list[tuple[str, str]] = []
        for index, pair in enumerate(stored):
            path = ("contrasts", str(index))
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
                self._error(path, f"must be a pair of variants, got {pair!r}; write [feat32, none]")
                continue
            wrong = [name for name in pair if names and name not in names]
            for name in wrong:
                place = str(pair.index(name))
                self._error((*path, place), f"must name a variant, got {name!r}; {did_you_mean(name, names)}")
            if pair[0] == pair[1]:
                self._error(path, f"must compare two variants, got {pair[0]!r} twice; name another, or drop the pair")
            elif any(set(pair) == set(other) for other in found):
                self._error(path, f"each pair once, got {pair!r} again; drop it")
            elif not wrong:
                found.append((pair[0], pair[1]))
        return tuple(found)

    def _name(self, path: Position) -> str:
        value = self._text(path)
        if value and isinstance(self._content[path[0]], str) and not _NAME.fullmatch(value):
            self._error(path, f"{_NAME_RULE}, got {value!r}")
        return value

    def _preset_name(self) -> str:
        own = self._content.get("preset")
        if "preset" in self._content and own not in (names := tuple(PRESETS)):
            self._error(("preset",), f"must be one of {', '.join(names)}, got {own!r}{hint(own, names)}")
        if self._preset is not None and self._preset not in PRESETS:
            choices = ", ".join(PRESETS)
            close = hint(self._preset, PRESETS)
            self._command_errors.append(f"--preset: must be one of {choices}, got {self._preset!r}{close}")
        return self._preset if self._preset is not None else str(own)

    def _seeds(self) -> tuple[int, ...]:
        seeds = self._content.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds:
            self._error(("seeds",), f"must be a list with a whole number or more, got {seeds!r}; write [0, 1, 2]")
            return ()
        seen = set[int]()
        for index, seed in enumerate(seeds):
            if type(seed) is not int or not 0 <= seed <= MAX_SEED:
                self._error(("seeds", str(index)), f"must be a whole number in 0..{MAX_SEED}, got {seed!r}")
            elif seed in seen:
                self._error(("seeds", str(index)), f"each seed once, got {seed} again; drop it")
            else:
                seen.add(seed)
        return tuple(seeds)

    def _design(self) -> Design | None:
        design = self._content.get("design", "one_at_a_time")
        choices = get_args(Design)
        if design not in choices:
            self._error(("design",), f"must be one of {', '.join(choices)}, got {design!r}{hint(design, choices)}")
            return None
        return cast(Design, design)

    def _base(self, preset: Config) -> Config:
        changes = self._content.get("set", {})
        if not isinstance(changes, dict):
            self._error(("set",), f"must be a mapping of fields to values, got {changes!r}; write {{optim.steps: 500}}")
            changes = {}
        base = self._applied(preset, changes, ("set",))
        is_registered = "eval.endpoint" in changes or "eval.endpoint" in self._changes
        if is_registered and not any(name in self._changes for name in _ENDPOINT):  # else the command line decides
            self._check_endpoint(base, changes, ("set",))
        for name, text in self._changes.items():
            try:
                base = override(base, {name: text})
            except ValueError as error:
                self._command_errors.append(f"--set {error}")
        if not is_registered:  # a preset's own endpoint is for its own number of steps
            return override(base, {"eval.endpoint": min(base.eval.endpoint, base.evaluations)})
        field = next((name for name in _ENDPOINT if name in self._changes), None)
        if field is not None and not self._document.errors() and (rule := _endpoint_rule(base, field)):
            self._command_errors.append(f"--set {field}: {rule}")
        return base

    def _check_endpoint(self, config: Config, changes: Changes, path: Position) -> None:
        """Notes a score over more evaluations than the run has, at the field of `changes` that makes it so."""
        field = next((name for name in _ENDPOINT if name in changes), None)
        if field is not None and (rule := _endpoint_rule(config, field)):
            self._error((*path, field), rule)

    def _check_arms(self, base: Config, found: Iterable[Arm]) -> None:
        """Notes a variant whose levels together leave too few evaluations, though each alone does not."""
        for arm in found:
            field = next((name for name in _ENDPOINT if name in arm.changes), None)
            if field is not None and (rule := _endpoint_rule(override(base, arm.changes), field)):
                self._error(("factors",), f"{arm.name}: {field}: {rule}")

    def _applied(self, config: Config, changes: Changes, path: Position) -> Config:
        """`config` with the changes that it takes; the others are noted, each at its own place."""
        for name, value in changes.items():
            try:
                config = override(config, {name: value})
            except ValueError as error:
                rule = str(error).removeprefix(f"{name}: ")
                self._error((*path, name), rule, at="key" if rule.startswith("no such field") else "value")
        return config

    def _factors(self, base: Config, owner: dict[str, Position]) -> Factors:
        factors = self._content.get("factors", {})
        if "factors" in self._content and (not isinstance(factors, dict) or not factors):
            self._error(("factors",), f"must map factors to levels, got {factors!r}; see studies/smoke.yaml")
            return {}
        sound: Factors = {}
        for factor, levels in factors.items():
            self._check_name(("factors", factor))
            if "+" in factor:
                self._error(("factors", factor), "must have no +, which joins levels; take - or _", at="key")
            if not isinstance(levels, dict) or not levels:
                self._error(("factors", factor), f"must have a level or more, got {levels!r}; write none: {{}}")
                continue
            sound[factor] = {}
            for level, changes in levels.items():
                path = ("factors", factor, level)
                self._check_name(path)
                if not isinstance(changes, dict):
                    self._error(path, f"must map fields to values, got {changes!r}; write {{}} for no change")
                    continue
                self._check_owner(path, changes, owner)
                config = self._applied(base, changes, path)
                if not _endpoint_rule(base):
                    self._check_endpoint(config, changes, path)
                self._levels[path] = config
                sound[factor][level] = changes
        return sound

    def _check_name(self, path: Position) -> None:
        if not _NAME.fullmatch(path[-1]):
            self._error(path, f"{_NAME_RULE}, got {path[-1]!r}", at="key")

    def _check_owner(self, path: Position, changes: Changes, owner: dict[str, Position]) -> None:
        """A field belongs to one factor, or to `--set`: else one silently undoes the other."""
        for name in changes:
            first = owner.setdefault(name, path[:2])
            if first != path[:2]:
                taken = f"is changed by {'.'.join(first)} already"
                self._error((*path, name), f"{taken}; a field belongs to one factor or to --set, drop one", at="key")

    def _baseline_name(self) -> str:
        baseline = self._content.get("baseline")
        if isinstance(baseline, str) and baseline:
            return baseline
        if "baseline" in self._content:
            self._error(("baseline",), f"must name a variant, got {baseline!r}; put the name in quotes")
        return ""

    def _baseline_of_search(self) -> str:
        """The name of the variant that changes nothing: the study's to give."""
        baseline = self._baseline_name()
        if baseline == BEST or is_trial_name(baseline):
            self._error(("baseline",), f"must not be a name that the search gives, got {baseline!r}; write preset")
        elif baseline and not _NAME.fullmatch(baseline):
            self._error(("baseline",), f"{_NAME_RULE}, got {baseline!r}")
        return baseline

    def _baseline(self, design: Design, factors: Factors, seeds: Sized) -> str:
        baseline = self._baseline_name()
        if not baseline:
            return ""
        variants = math.prod(map(len, factors.values())) if design == "grid" else sum(map(len, factors.values()))
        if variants * len(seeds) > _MAX_CELLS:  # before they are made: a grid of ten factors would take all memory
            got = f"{variants:,} variants x {len(seeds):,} seeds"
            self._error(("factors",), f"must give {_MAX_CELLS:,} cells at most, got {got}; drop levels or seeds")
            return baseline
        if design == "ladder" and len(factors) > 1:
            self._error(("factors",), f"a ladder climbs one factor, got {', '.join(factors)}; choose grid, or keep one")
            return baseline
        if design == "one_at_a_time":
            self._check_home(baseline, factors)
            return baseline
        names = Counter(arm.name for arm in arms(design, factors, baseline))
        if baseline not in names:
            self._error(("baseline",), f"must name a variant, got {baseline!r}; {did_you_mean(baseline, names)}")
        for name, count in names.items():
            if count > 1:
                self._error(("factors",), f"two variants would be named {name!r}; rename a level")
            if len(name) > _MAX_NAME:
                rule = f"a variant's name must have {_MAX_NAME} characters at most, because it names files"
                self._error(("factors",), f"{rule}, got {len(name)} in {name!r}; shorten its levels")
        return baseline

    def _check_home(self, baseline: str, factors: Factors) -> None:
        seen: dict[str, str] = {}
        for factor, levels in factors.items():
            if baseline not in levels:
                close = did_you_mean(baseline, levels)
                self._error(("baseline",), f"must be a level of every factor, got {baseline!r}; {factor}: {close}")
            for level in levels:
                if level != baseline and level in seen:
                    path = ("factors", factor, level)
                    self._error(path, f"is a level of {seen[level]} too; rename one, levels name variants", at="key")
                seen[level] = factor


def _endpoint_rule(config: Config, field: str = "eval.endpoint") -> str:
    """What is wrong where a run has fewer evaluations than its score is the mean of, as told at `field`; else ""."""
    try:
        config.check_endpoint()
    except ValueError as error:
        rule = str(error).removeprefix("eval.endpoint: ")
        return rule if field == "eval.endpoint" else f"eval.endpoint {rule}"
    return ""


def _unmeasured(metric: Any, config: Config) -> str:
    """Why runs of `config` do not have a metric that others have (sagan/metrics/evaluation.py); "" where they do."""
    data, extractor = config.data.name, config.eval.extractor
    labelled = config.model.conditioning != "none"
    # A classifier that was trained for a data set is named after it: imagenette-1a2b3c4d.
    knows_classes = labelled and extractor.rpartition("-")[0] == data
    if metric in RELATIONS and data != "embedded":
        return f"is read off the built-in pictures alone, and this preset has {data}"
    if metric == "intra_fid" and not labelled:
        return "is of classes, and model.conditioning=none has none"
    if metric == "class_consistency" and not knows_classes:
        return f"needs labels and an extractor that knows the classes of {data}; {_has(config)}"
    if metric == "is" and not knows_classes and not (extractor == "inception" and data != "embedded"):
        return f"needs an extractor whose classes fit the pictures of {data}; {_has(config)}"
    return ""


def _has(config: Config) -> str:
    return f"here model.conditioning={config.model.conditioning} and eval.extractor={config.eval.extractor}"
