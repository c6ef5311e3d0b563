"""The JSON schema of study files: what an editor makes of it is what read_study makes of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from ablations.document import StudyError
from ablations.study import read_study
from ablations.study_file import schema
from sagan.config import field_names

WriteStudy = Callable[..., Path]
STUDIES = Path(__file__).parents[2] / "studies"
VALIDATOR = jsonschema.Draft202012Validator(json.loads((STUDIES / "schema.json").read_text()))


def told_by_the_schema(path: Path) -> list[str]:
    """The places of its mistakes."""
    content: Any = YAML(typ="safe", pure=True).load(path)
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(content)]


def test_the_schema_that_ships_is_current() -> None:
    """If not: python -m ablations.study_file > studies/schema.json"""
    assert json.loads((STUDIES / "schema.json").read_text()) == schema()
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert tuple(schema()["$defs"]["Changes"]["properties"]) == field_names()


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_that_ships_names_the_schema_first_and_keeps_to_it(path: Path) -> None:
    folder = "" if path.parent == STUDIES else "../"
    assert path.read_text().splitlines()[0] == f"# yaml-language-server: $schema={folder}schema.json"
    assert told_by_the_schema(path) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"question:": "qestion:"}, ""),
        ({"embedded": "embeded"}, "preset"),
        ({"[0, 1]": "three"}, "seeds"),
        ({"[0, 1]": "[0, -1]"}, "seeds"),
        ({"[0, 1]": "{first: 2, most: 5}"}, "seeds"),
        ({"[0, 1]": "{first: 3, most: 5}\nmargin: ten"}, "margin"),
        ({"at: [32]": "at: 32"}, "factors.attention.feat32.model.attention.at"),
        ({"{model.attention.at: [32]}": "{model.atention.at: [32]}"}, "factors.attention.feat32"),
        ({"none:   {}": "none:"}, "factors.attention.none"),
        ({"seeds:": "set: {optim.stepz: 3}\nseeds:"}, "set"),
        ({"seeds:": "design: grd\nseeds:"}, "design"),
        ({"seeds:": "contrasts: [[feat32]]\nseeds:"}, "contrasts.0"),
        ({"seeds:": "search: {seed: 1, trials: 0, fields: {optim.stepz: [1, 2]}}\nseeds:"}, "search.trials"),
    ],
    ids=str,
)
def test_what_the_schema_refuses_the_reader_refuses(
    change: dict[str, str], place: str, write_study: WriteStudy
) -> None:
    path = write_study(change)
    assert place in told_by_the_schema(path)
    with pytest.raises(StudyError):
        read_study(path)
