"""The study that certifies the laboratory, in a tiny form: from its start to the page of the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Lab

from reports.build import main as build_report

CONTROLS = Path(__file__).parents[2] / "studies" / "controls.yaml"
TINY = {
    "data.resolution": 32,
    "optim.batch_size": 4,
    "eval.num_samples": 32,
    "eval.standing_images": 8,
    "eval.endpoint": 1,
}
STEPS = {
    "baseline:      {}": "baseline: {optim.steps: 4, eval.every: 2}",
    "{optim.steps: 200, eval.every: 25}": "{optim.steps: 2, eval.every: 1}",
    "{optim.streams: 1}": "{optim.streams: 1, optim.steps: 4, eval.every: 2}",
}


@pytest.mark.slow
def test_the_controls_run_from_start_to_report_page(tmp_path: Path, forked: None) -> None:
    lab, study = Lab(tmp_path / "lab"), tmp_path / "controls.yaml"
    text = CONTROLS.read_text()
    for steps, tiny in STEPS.items():  # of each variant, because they differ in them
        assert steps in text
        text = text.replace(steps, tiny)
    study.write_text(text)
    options = [part for field, value in TINY.items() for part in ("--set", f"{field}={value}")]
    status, said = lab.run(study, "--seeds", "0,1", "--workers", "2", *options)
    assert status == 0, said

    fids = {
        (run.data.tags["variant"], int(run.data.tags["seed"]), point.step): point.value
        for experiment in lab.store().client.search_experiments()
        for run in lab.store().runs(experiment.experiment_id, "tags.kind = 'cell'")
        for point in lab.store().client.get_metric_history(run.info.run_id, "fid")
    }
    variants = ("baseline", "quarter_steps", "placebo")
    scored = {"baseline": (2, 4), "quarter_steps": (1, 2), "placebo": (2, 4)}
    assert fids.keys() == {(name, seed, step) for name, steps in scored.items() for seed in (0, 1) for step in steps}
    for seed in (0, 1):
        assert fids["placebo", seed, 4] != fids["baseline", seed, 4]

    assert build_report(["--tracking-uri", lab.uri, "--out", str(tmp_path / "out"), "--format", "html"]) == 0
    (page,) = (tmp_path / "out").glob("*/index.html")
    shown = page.read_text(encoding="utf-8")
    assert "Does this laboratory find a difference that is there" in shown and "6 of 6 cells done: 6 finished" in shown
    assert all(variant in shown for variant in variants)
