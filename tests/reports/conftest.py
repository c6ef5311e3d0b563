"""A store as the tracker leaves it, written through MLflow's own client, with made-up numbers of a likely shape.

Studies: `attention_position` (none to feat32 over three seeds, feat64 impossible at this size; one cell collapsed, one
still running), and what single tests add.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_studies import CLASSES, FINGERPRINT, GROUPS, attention_map, evaluation, sample_grid
from PIL import Image

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

LEVELS = {"none": 28.0, "feat8": 28.4, "feat16": 25.9, "feat32": 23.4}
STEPS = 1000


@dataclass
class FakeStore:
    """`folder` holds mlflow.db; `uri` names it."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def experiment(self, study: str) -> str:
        client = self.client()
        found = client.get_experiment_by_name(study)
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(study, artifact_location=(self.folder / "mlruns" / study).as_uri()))

    def launch(self, study: str, variants: Sequence[str], seeds: Sequence[int], **fields: Any) -> str:
        """A parent run with its plan; `fields` go over the plan's."""
        planned = [
            {"name": name, "factors": {"attention": name}, "config_digest": f"digest-{name}",
             "changes": {} if name == "none" else {"model.attention.at": [name]},
             "obstacle": "needs 128 px" if name == "feat64" else None}
            for name in variants
        ]  # fmt: skip
        plan = {
            "study": study, "question": "Which feature map should carry self-attention?", "paper": "table1",
            "protocol": "embedded", "preset": "embedded", "baseline": "none", "seeds": list(seeds),
            "variants": planned, **fields,
        }  # fmt: skip
        tags = {key: str(plan[key]) for key in ("study", "preset", "protocol", "baseline")}
        client = self.client()
        run = client.create_run(self.experiment(study), run_name="launch", tags={"kind": "launch", **tags})
        client.log_dict(run.info.run_id, plan, "plan.json")
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def cell(
        self,
        study: str,
        variant: str,
        seed: int,
        points: Sequence[tuple[str, float, int]],
        *,
        outcome: str | None = "finished",
        status: str = "FINISHED",
        pictures: bool = False,
        **tags: str,
    ) -> str:
        """A child run with (key, value, step) points, stored in this order."""
        from mlflow.entities import Metric, Param, RunTag

        last = max((step for *_, step in points), default=0)
        tags = {
            "kind": "cell", "study": study, "preset": "embedded", "protocol": "embedded", "variant": variant,
            "seed": str(seed), "baseline": "none", "paper": "table1", "config_digest": f"digest-{variant}",
            "data_fingerprint": "embedded-64-5d1f", "metric_fingerprint": FINGERPRINT, "last_step": str(last),
            "classes": json.dumps(CLASSES), "groups": json.dumps(GROUPS), "git_commit": "0123abc", "device": "cpu",
            "tile_px": "32", **({"outcome": outcome} if outcome else {}), **tags,
        }  # fmt: skip
        client = self.client()
        run_id = client.create_run(self.experiment(study), run_name=f"{variant}/seed{seed}").info.run_id
        metrics = [Metric(key, value, 1_700_000_000_000 + n, step) for n, (key, value, step) in enumerate(points)]
        for first in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics[first : first + 1000])
        client.log_batch(
            run_id, params=[Param("optim.steps", str(STEPS))], tags=[RunTag(*item) for item in tags.items()]
        )
        if pictures:
            self.log_pictures(run_id, None if variant == "none" else int(variant.removeprefix("feat")))
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        return str(run_id)

    def log_pictures(self, run_id: str, side: int | None) -> None:
        """A sample grid and, with `side`, the maps of an attention layer of this size."""
        local = self.folder / "local" / run_id
        (local / "samples").mkdir(parents=True)
        Image.fromarray(sample_grid(60.0)).save(local / "samples" / f"step_{STEPS:07d}.png")
        if side is not None:
            (local / "attention" / f"g{side}").mkdir(parents=True)
            np.savez(local / "attention" / f"g{side}" / f"step_{STEPS:07d}.npz", **attention_map(side))
        self.client().log_artifacts(run_id, str(local))


def training(variant: str, seed: int, until: int = STEPS) -> list[tuple[str, float, int]]:
    """Made-up histories, with evaluations every 200 steps."""
    rng = np.random.default_rng([seed, len(variant), ord(variant[-1])])
    points = [("num_params_g", 884_213.0 + 1000 * len(variant), 0), ("num_params_d", 512_001.0, 0)]
    for step in range(0, until + 1, 50):
        done, luck = step / STEPS, rng.normal()
        logged = {"loss_d": 1.2 - 0.2 * done, "loss_g": 0.3 + 0.1 * luck, "sigma_max/g": 1 + 0.1 * done,
                  "sigma_max/d": 1.1 + 0.1 * done, "images_per_sec": 52 - len(variant) + luck,
                  "peak_memory_mib": 812.0 + len(variant), "attention_entropy/g32": 5.5 - done}  # fmt: skip
        if step % 200 == 0 and step:
            fid, *others = evaluation(LEVELS[variant], seed, step, rng, "finished")
            logged |= {"fid_se": 0.35, "kid": fid[1] / 9000, "fid_local": fid[1] / 3, "real_floor": 0.4}
            points += [fid, *others]
        points += [(key, value, step) for key, value in logged.items()]
    return points


def fill(store: FakeStore) -> None:
    study, variants = "attention_position", ("none", "feat8", "feat16", "feat32", "feat64")
    store.launch(study, variants, (0, 1, 2))
    for seed in (0, 1, 2):
        for variant in variants[:4]:
            match variant, seed:
                case "feat8", 2:
                    points = [*training(variant, seed, 400), ("fid", float("inf"), 420), ("loss_d", float("nan"), 420)]
                    store.cell(study, variant, seed, points, outcome="collapsed")
                case "feat16", 2:
                    store.cell(study, variant, seed, training(variant, seed, 600), outcome=None, status="RUNNING",
                               last_step="600")  # fmt: skip
                case _:
                    store.cell(study, variant, seed, training(variant, seed), pictures=seed == 0)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """Read it, do not write to it."""
    found = FakeStore(tmp_path_factory.mktemp("store"))
    fill(found)
    return found


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], FakeStore]:
    """Makes empty stores to write to; their schema is made once, since that takes seconds."""
    template = FakeStore(tmp_path_factory.mktemp("template"))
    template.client().search_experiments()

    def make() -> FakeStore:
        folder = tmp_path_factory.mktemp("scratch")
        (folder / "mlflow.db").write_bytes((template.folder / "mlflow.db").read_bytes())
        return FakeStore(folder)

    return make


@pytest.fixture
def fake(scratch: Callable[[], FakeStore]) -> FakeStore:
    """An empty store to write to."""
    return scratch()
