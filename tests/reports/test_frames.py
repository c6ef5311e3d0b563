"""Results as data: from a store and from a report's CSV files alike."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_studies
import pandas as pd
import pytest
from made_studies import make_results

from reports.build import main as build
from reports.build import write_study
from reports.compare import main as compare
from reports.frames import load


def study(fake: Any, name: str, scores: dict[str, list[float]], **tags: str) -> None:
    fake.launch(name, tuple(scores), tuple(range(len(scores["none"]))))
    for variant, values in scores.items():
        for seed, value in enumerate(values):
            fake.cell(name, variant, seed, [("fid", value, 1000)], **tags)


def test_a_report_read_back_is_what_its_store_says(store: Any, tmp_path: Path) -> None:
    assert build(["--tracking-uri", store.uri, "--out", str(tmp_path), "--format", "csv"]) == 0
    ours, theirs = load("attention_position", store.uri), load("attention_position", tmp_path)
    for name in ("cells", "comparisons"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name), check_dtype=False, check_exact=True)
    assert theirs.metrics.empty and list(theirs.metrics) == list(ours.metrics)
    assert list(load(None, store.folder).cells) == list(ours.cells), "a folder with mlflow.db is its store"


def test_the_example_of_the_documentation_runs(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.folder)
    readme = (Path(__file__).parents[2] / "reports" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len([line for line in example.splitlines() if line]) == 5
    names: dict[str, Any] = {}
    exec(example.replace("controls", "attention_position").replace("relation_error", "fid"), names)
    found = names["found"]
    assert {"none", "feat32"} <= set(found.cells["variant"]) and set(found.metrics["key"]) >= {"fid", "loss_d"}


def test_names_that_pandas_takes_for_missing_are_names(tmp_path: Path) -> None:
    results = make_results({"NA": {0: 1.0, 1: 2.0}, "null": {0: 1 / 3, 1: 2.0}}, baseline="NA")
    write_study(results, tmp_path / "report", frozenset({"csv"}))
    found = load(None, tmp_path)
    assert list(found.cells["variant"]) == ["NA", "NA", "null", "null"] and found.cells["fid"].iloc[2] == 1 / 3


def test_an_adaptive_study_says_after_how_many_seeds_each_verdict_was_reached(tmp_path: Path) -> None:
    write_study(made_studies.adaptive(), tmp_path / "report", frozenset({"csv"}))
    found = load("adaptive", tmp_path)
    rows = found.comparisons.query("role == 'primary'").set_index("variant")
    assert rows["verdict"].dropna().to_dict() == {"feat8": "equivalent", "feat16": "better", "feat32": "undecided"}
    finished = found.cells.query("state == 'finished'")["variant"].value_counts()
    after = rows["decided_after"].dropna().to_dict()
    assert after["feat16"] == finished["feat16"] < after["feat8"] == finished["feat8"] < after["feat32"] == 12


BASE, LOWER = [10.0, 11.0, 9.5, 10.4], [5.0, 5.2, 4.9, 5.3]


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert compare(list(arguments)) == 0
    return capsys.readouterr().out


def test_two_stores_are_compared_by_verdict_and_by_difference(
    scratch: Callable[[], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = scratch(), scratch()
    noisy = [4.0, 14.0, 9.0, 12.0]  # shows nothing, and so contradicts nothing
    study(one, "s", {"none": BASE, "same": LOWER, "lost": LOWER, "turned": LOWER, "gone": LOWER})
    study(other, "s", {"none": BASE, "same": [5.1, 5.0, 5.2, 5.0], "lost": noisy, "turned": [20.0, 21.0, 19.0, 20.5]})
    build(["--tracking-uri", one.uri, "--out", str(tmp_path), "--format", "csv"])
    said = compared(capsys, str(tmp_path), other.uri)
    lines = {line.split()[0]: line.split() for line in said.splitlines()[1:]}
    assert {name: lines[name][-2:] for name in ("same", "lost", "turned")} == {
        "same": ["agree", "agree"], "lost": ["differ", "agree"], "turned": ["contradict", "differ"],
    }  # fmt: skip
    assert "verdicts: 1 of 3 agree; differences: 1 of 3 differ by more than their intervals" in said
    assert "of 16 cells that finished in both, 4 have the same fid to the last digit" in said
    assert "compared in one alone: gone" in said and "different ways" not in said


def test_a_study_compared_with_itself_agrees_in_everything(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = compared(capsys, store.uri, str(store.folder), "--study", "attention_position")
    assert "of 10 cells that finished in both, 10 have the same" in said
    assert "verdicts: 3 of 3 agree; differences: 0 of 3 differ" in said


def test_one_seed_each_is_compared_without_an_interval(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    study(fake, "s", {"none": [10.0], "same": [5.0]})
    said = compared(capsys, fake.uri, fake.uri)
    assert re.search(r"same +none +-50 % +1 +undecided +-50 % +1 +undecided +agree +no interval", said)
    assert "differences: 0 of 0 differ" in said


def test_a_terminal_of_plain_ascii_gets_the_comparison(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study(fake, "s", {"none": BASE, "größer": LOWER})
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert compare([fake.uri, fake.uri]) == 0
    assert re.search(rb"gr\?\?er +none +-\d\d % \(-\d\d to -\d\d\)", written.getvalue())


def test_figures_that_were_measured_otherwise_are_said_not_to_compare(
    store: Any, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study(fake, "attention_position", {"none": BASE}, metric_fingerprint="inception-v3@ff; 50000 samples")
    assert "A and B were measured in different ways" in compared(capsys, store.uri, fake.uri)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["STORE", "nowhere"], "nowhere has no results: it must be a tracking URI, a folder"),
        (["STORE", "STORE", "--study", "attention_positon"], "did you mean 'attention_position'"),
        (["STORE", "OTHER"], "no study at one protocol in common: A has attention_position (embedded); B has s (embe"),
    ],
)
def test_what_cannot_be_compared_is_one_message_and_status_2(
    store: Any, fake: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    study(fake, "s", {"none": BASE})
    uris = {"STORE": store.uri, "OTHER": fake.uri}
    assert compare([uris.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
