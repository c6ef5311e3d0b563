"""Names from study files, from folders of images and from generators of others, in all places that they come to.

What a report does with names that a store of somebody else's holds: tests/reports/test_hostile_store.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from told import begin, describe, tell

from ablations.document import StudyError
from ablations.study import read_study
from ablations.tracking import store as tracking
from ablations.tracking.sending import storable
from reports.loading import load_results
from reports.results import Results
from reports.store import Store
from sagan import generate, load_generator
from sagan.config import Config, DataConfig
from sagan.data import list_source, open_dataset
from sagan.generator_file import save_generator
from sagan.networks import Generator

SMOKE = Path(__file__).parents[1] / "studies" / "smoke.yaml"
NAMES = (
    "../../x", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "x" * 65, "",  # paths
    "<script>alert(1)</script>", "\\input{/etc/passwd}", "50%", "a_b&c", "$x$", "a b", "日本",  # HTML and LaTeX
    "x' or tags.seed = '1", '"', "`id`", "$(id)", "a;b", "*", "{{ 7*7 }}",  # filters, shells, globs, templates
)  # fmt: skip
STUDY = """
name: {name}
question: Q?
paper: {paper}
preset: embedded
seeds: [0]
baseline: none
factors:
  {factor}:
    none: {{}}
    {level}: {{optim.d_steps: 2}}
"""


@pytest.mark.parametrize("field", ["name", "paper", "factor", "level"])
def test_no_name_of_a_study_file_leaves_its_folder_or_ends_a_string(tmp_path: Path, field: str) -> None:
    fine = {"name": "a", "paper": "b", "factor": "c", "level": "con"}
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(**fine))
    folders = [cell.directory(tmp_path).parent for cell in read_study(path).cells()]
    assert folders == [tmp_path / "a" / "none", tmp_path / "a" / "con"]
    for name in NAMES:
        path.write_text(STUDY.format(**{**fine, field: json.dumps(name)}))
        with pytest.raises(StudyError, match=rf"{path}:\d+:\d+: .*(names files|must be a text)"):
            read_study(path)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tracking.Store:
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return tracking.Store(f"sqlite:///{folder}/mlflow.db")


def reported(
    writer: tracking.Store, runs: Path, variant: str, classes: Sequence[str], scores: dict[str, float], **groups: Any
) -> tuple[Results, dict[str, str]]:
    """What the report reads of a study with a cell of such classes and scores, and the tags of that cell's run."""
    study = read_study(SMOKE)
    attempt = begin(runs, study.cells(variant)[0])
    describe(attempt, classes=classes, groups=groups)
    tell(attempt, 6, scores, status="finished")
    writer.send(writer.open_experiment(study), attempt, has_ended=True)
    (results,) = load_results(Store(writer.client.tracking_uri))
    return results, writer.client.get_run(str(attempt.upload_state.run_id)).data.tags


CLASSES = ("cat's", "C++", "C**", "50%", "<b>", "two\nlines", "日本", "x" * 255, "x" * 254, 'a"b', "St. John: 1-2")


def test_scores_of_classes_of_any_name_reach_the_report(writer: tracking.Store, tmp_path: Path) -> None:
    scores = {f"fid_class/{name}": float(label) for label, name in enumerate(CLASSES)}
    results, _ = reported(writer, tmp_path, "none", CLASSES, {"fid": 12.5, **scores}, odd=(0, 1))
    assert results.final_scores.loc[0, "fid"] == 12.5
    assert len(set(results.classes)) == len(CLASSES)
    assert [results.final_scores.loc[0, f"fid_class/{name}"] for name in results.classes] == list(range(len(CLASSES)))
    assert results.groups == {"odd": (0, 1)}


def test_a_thousand_classes_cost_the_report_nothing_but_their_names(writer: tracking.Store, tmp_path: Path) -> None:
    classes = [f"class number {number}" for number in range(1000)]
    results, tags = reported(writer, tmp_path, "feat16", classes, {"fid": 11.5})
    assert "classes" not in tags, "MLflow would cut it short, and what is left is no JSON"
    assert results.finished("fid")["feat16"] == {0: 11.5}


def test_names_that_mlflow_takes_stay_as_they_are() -> None:
    assert storable(["a b", "c.d", "e-f: g_1", "ü"]) == ["a b", "c.d", "e-f: g_1", "ü"]
    assert storable(["a+", "a_", "a-", "a*", "a&"]) == ["a_", "a__", "a-", "a___", "a____"]


def test_images_are_read_from_folders_of_any_name(tmp_path: Path) -> None:
    root = tmp_path / "Größe und % 'x' #1?"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "50% #1.png")
    found = open_dataset(DataConfig(name="folder", resolution=32), root, tmp_path / "cache")
    assert found.classes == tuple(sorted(CLASSES)) and len(found.images) == len(CLASSES)


def test_a_folder_whose_name_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", folder + b"/x.png")
    with pytest.raises(ValueError, match=r"--data-root: names must be UTF-8, got b'caf\\xe9' in .*; rename it"):
        list_source(DataConfig(name="folder", resolution=32), tmp_path)


def test_classes_of_a_generator_from_elsewhere_are_drawn_and_move_no_cursor(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ("../../x", "\x1b[2J\nwrote", "\ud800")
    generator = Generator(tiny.model, tiny.data.resolution, len(classes))
    save_generator(tmp_path / "g.safetensors", generator, tiny, classes)
    assert load_generator(tmp_path / "g.safetensors")[1] == classes
    assert generate.main([str(tmp_path / "g.safetensors"), "--n", "3", "--out", str(tmp_path / "grid.png")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/grid.png: 3 pictures in 3 rows of ../../x, ?[2J?wrote, ?\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.safetensors", "grid.png"]
