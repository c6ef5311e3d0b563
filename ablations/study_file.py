"""The format of a study file: a pydantic model with the rule for each field, also as a JSON schema for editors.

`python -m ablations.study_file > studies/schema.json` writes the schema.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter
from pydantic_core import ValidationError
from pydantic_core.core_schema import CoreSchema, no_info_wrap_validator_function

from ablations.document import hint
from ablations.plan import OBJECTIVES, PRIMARY_METRICS, Changes, Design
from sagan.config import Config
from sagan.options import MAX_SEED
from sagan.presets import PRESETS

NAME = "[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,63}"
NAME_RULE = "be 1 to 64 letters, digits or any of _ - + . and not begin with a dot, because it names files"
KINDS = ("(range)", "(choices)", "(adaptive)", "(list)")  # pydantic adds these to the position of a mistake
MAX_ADAPTIVE = 60  # seeds: the simulation of so many looks still takes seconds


@dataclasses.dataclass(frozen=True)
class Must:
    """A rule for a value, with a way to write it, for error messages (in place of pydantic's) and for the schema.

    `names` are the allowed values, if they are a fixed list.
    """

    rule: str
    way_out: str = ""
    names: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return no_info_wrap_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        names = {"enum": list(self.names)} if self.names else {}
        return {**handler(core), **names, "description": f"Must {self.rule}."}

    def _check(self, value: Any, check: Any) -> Any:
        try:
            checked = check(value)
            if not self.names or checked in self.names:
                return checked
        except ValidationError as error:
            if any(mistake["loc"] for mistake in error.errors()):  # of an inner value, with a message of its own
                raise
        close = hint(value, self.names) if self.names else f"; {self.way_out}"
        raise ValueError(f"must {self.rule}, got {value!r}{close}") from None


def _one_of(names: tuple[str, ...]) -> Must:
    return Must(f"be one of {', '.join(names)}", names=names)


def _above_zero(text: str) -> str:
    if not any(digit in text for digit in "123456789"):
        raise ValueError
    return text


def _printable(text: str) -> str:
    if not all(char.isprintable() or char in "\n\t" for char in text):
        raise ValueError
    return text


Name = Annotated[str, Field(pattern=f"^{NAME}$"), Must(NAME_RULE, "rename it")]
FactorName = Annotated[
    str,
    Field(pattern=f"^{NAME}$".replace("+", "")),
    Must(f"have no +, which joins levels, and {NAME_RULE.replace(' +', '')}", "rename it"),
]
Text = Annotated[
    str,
    Field(min_length=1, max_length=1_000, pattern=r"\S"),
    AfterValidator(_printable),
    Must("be a text of 1 to 1000 characters with no control characters or unpaired surrogates", "write it in quotes"),
]
Variant = Annotated[str, Field(min_length=1), Must("name a variant", "put the name in quotes")]
Pair = Annotated[
    list[Variant], Field(min_length=2, max_length=2), Must("be a pair of variants", "write [feat32, none]")
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), Must(f"be a whole number in 0..{MAX_SEED}", "write 0")]
Margin = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,2}(\.[0-9]{1,6})? ?%$"),
    AfterValidator(_above_zero),
    Must("be a percentage above 0 and below 100", "write 10 %"),
]
Level = Annotated[Changes, Must("map fields to values", "write {} for no change")]
Levels = Annotated[dict[Name, Level], Field(min_length=1), Must("have at least one level", "write none: {}")]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RangeBlock(_Block):
    """Values of a field in a search: numbers from low to high, both included."""

    low: Any
    high: Any
    log: Annotated[bool, Must("be true or false", "write log: true")] = False


Choices = Annotated[
    list[Any],
    Field(min_length=2),
    Must("be a list of two choices or more, or a range", "write [1, 2] or {low: 1e-4, high: 1e-3, log: true}"),
]
Space = Annotated[
    Annotated[RangeBlock, Tag(KINDS[0])] | Annotated[Choices, Tag(KINDS[1])],
    Discriminator(lambda value: KINDS[0] if isinstance(value, dict) else KINDS[1]),
]


NumSeeds = Annotated[
    int,
    Field(ge=3, le=MAX_ADAPTIVE),
    Must(
        f"be a whole number in 3..{MAX_ADAPTIVE}, because estimating a spread needs at least three seeds",
        "write {first: 3, most: 12}",
    ),
]


class AdaptiveBlock(_Block):
    """Adaptive seeds: see ablations.plan.Adaptive."""

    first: NumSeeds
    most: NumSeeds


SeedList = Annotated[
    list[Seed],
    Field(min_length=1),
    Must("be a list of at least one whole number, or adaptive", "write [20, 21, 22] or {first: 3, most: 12}"),
]
Seeds = Annotated[
    Annotated[AdaptiveBlock, Tag(KINDS[2])] | Annotated[SeedList, Tag(KINDS[3])],
    Discriminator(lambda value: KINDS[2] if isinstance(value, dict) else KINDS[3]),
]


class SearchBlock(_Block):
    """The search of a study without factors: see ablations.plan.Search."""

    seed: Seed
    trials: Annotated[int, Field(ge=1, le=10_000), Must("be a whole number in 1..10000", "write 20")]
    objective: Annotated[str, _one_of(OBJECTIVES)] = "fid"
    fields: Annotated[dict[str, Space], Field(min_length=1), Must("map fields to ranges or choices", "name one")]


class StudyFile(_Block):
    """A study file. studies/README.md explains each field."""

    name: Name
    question: Text
    preset: Annotated[str, _one_of(tuple(PRESETS))]
    paper: Name = ""
    metric: Annotated[str, _one_of(PRIMARY_METRICS)] = ""
    seeds: Seeds
    margin: Margin = ""
    baseline: Variant
    contrasts: Annotated[list[Pair], Field(min_length=1), Must("be a list of pairs", "write [[feat32, none]]")] = []
    design: Annotated[Design, _one_of(typing.get_args(Design))] = "one_at_a_time"
    set: Annotated[Changes, Must("be a mapping of fields to values", "write {optim.steps: 500}")] = {}
    factors: Annotated[
        dict[FactorName, Levels], Field(min_length=1), Must("map factors to levels", "see studies/smoke.yaml")
    ] = {}
    search: Annotated[SearchBlock, Must("be a mapping", "see studies/ttur_search.yaml")] = cast(Any, None)


def schema() -> dict[str, Any]:
    """The JSON schema of study files, with every field of sagan.config, so that editors complete their names."""
    found = StudyFile.model_json_schema()
    kinds = {name: TypeAdapter(kind).json_schema() for name, kind in _field_kinds(Config)}
    found["$defs"]["Changes"] = {"type": "object", "properties": kinds, "additionalProperties": False}
    found["$defs"]["SearchBlock"]["properties"]["fields"]["propertyNames"] = {"enum": list(kinds)}
    (levels,) = found["properties"]["factors"]["patternProperties"].values()
    for node in (found["properties"]["set"], *levels["patternProperties"].values()):
        node["$ref"] = "#/$defs/Changes"
        node.pop("additionalProperties", None)  # pydantic 2.10 does not write it
    for node in found["properties"].values():
        if not node.get("default", True):  # an empty default means absent, which is not a valid value
            del node["default"]
    return {**found, "oneOf": [{"required": ["factors"]}, {"required": ["search"]}]}


def _field_kinds(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("optim.lr_g", float) and so on, of every field."""
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from _field_kinds(cast(type, kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
