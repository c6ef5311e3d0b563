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
from made_studies import FINGERPRINT, make_results
from PIL import Image

from reports.results import Results

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

CLASSES = ("stripes", "checks", "blobs", "twins", "rings", "frames")
GROUPS = {"texture": (0, 1, 2), "geometry": (3, 4, 5)}
GAIN = {"none": 0.0, "feat8": 0.4, "feat16": -2.1, "feat32": -4.6, "feat64": 0.0}
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
        plan = {
            "study": study,
            "question": "Which feature map should carry self-attention?",
            "paper": "table1",
            "protocol": "embedded",
            "preset": "embedded",
            "baseline": "none",
            "seeds": list(seeds),
            "variants": [
                {
                    "name": name,
                    "factors": {"attention": name},
                    "changes": {} if name == "none" else {"model.attention.at": [name]},
                    "obstacle": "needs 128 px" if name == "feat64" else None,
                    "config_digest": f"digest-{name}",
                }
                for name in variants
            ],
            **fields,
        }
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
            self._pictures(client, run_id, variant, seed)
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        return str(run_id)

    def _pictures(self, client: Any, run_id: str, variant: str, seed: int) -> None:
        local = self.folder / "local" / run_id
        (local / "samples").mkdir(parents=True)
        tiles = [[_tile(label, seed, column, GAIN[variant]) for column in range(8)] for label in range(6)]
        grid = np.concatenate([np.concatenate(row, axis=1) for row in tiles])
        Image.fromarray(grid).save(local / "samples" / f"step_{STEPS:07d}.png")
        if variant != "none":
            size = int(variant.removeprefix("feat"))
            (local / "attention" / f"g{size}").mkdir(parents=True)
            images = np.stack([_tile(label, seed, 0, 0.0) for label in (3, 4, 5)])
            queries = np.array([[size // 3, size // 3], [size // 2, size - 2], [1, 1]])
            rows, columns = np.mgrid[: size // 2, : size // 2]
            centres = queries[:, None, None, :] / 2
            near = np.exp(-((rows - centres[..., 0]) ** 2 + (columns - centres[..., 1]) ** 2) / size)
            maps = np.repeat((near / near.sum((1, 2), keepdims=True))[None], 3, axis=0).astype(np.float32)
            path = local / "attention" / f"g{size}" / f"step_{STEPS:07d}.npz"
            np.savez(path, images=images, queries=queries, maps=maps)
        client.log_artifacts(run_id, str(local))


def _tile(label: int, seed: int, column: int, gain: float) -> np.ndarray:
    rng = np.random.default_rng([seed, label, column])
    y, x = np.mgrid[:32, :32] / 32.0
    centre = rng.uniform(0.35, 0.65, 2)
    shapes = (
        np.sin(x * 24) > 0, (np.sin(x * 20) * np.sin(y * 20)) > 0, np.sin(x * 9 + 3 * np.sin(y * 9)) > 0.2,
        np.minimum(np.hypot(x - 0.25, y - centre[1]), np.hypot(x - 0.75, y - centre[1])) < 0.15,
        abs(np.hypot(x - centre[0], y - centre[1]) - 0.25) < 0.07,
        abs(np.maximum(abs(x - centre[0]), abs(y - centre[1])) - 0.25) < 0.06,
    )  # fmt: skip
    colour = np.array([[230, 160, 60], [80, 180, 220], [220, 90, 110], [120, 200, 120]])[rng.integers(4)]
    noise = rng.normal(0, 18 + 3 * gain, (32, 32, 3))
    return np.clip(20 + shapes[label][..., None] * colour + noise, 0, 255).astype(np.uint8)


def training(variant: str, seed: int, until: int = STEPS) -> list[tuple[str, float, int]]:
    """Made-up histories: seeds share much of their luck across variants, as paired seeds do."""
    luck = np.random.default_rng(seed).normal()
    rng = np.random.default_rng([seed, len(variant), ord(variant[-1])])
    gain = GAIN[variant] + 1.5 * luck + rng.normal(0, 0.5)
    points: list[tuple[str, float, int]] = [
        ("num_params_g", 884_213.0 + 1000 * len(variant), 0), ("num_params_d", 512_001.0, 0),
    ]  # fmt: skip
    for step in range(0, until + 1, 50):
        done = step / STEPS
        points += [
            ("loss_d", 1.2 - 0.2 * done + rng.normal(0, 0.05), step), ("loss_g", 0.3 + rng.normal(0, 0.1), step),
            ("logit_real", 0.6 + 0.3 * done, step), ("logit_fake", -0.5 - 0.4 * done, step),
            ("sigma_max/g", 1.0 + 0.1 * done, step), ("sigma_max/d", 1.1 + 0.1 * done, step),
            ("images_per_sec", 52 - len(variant) + rng.normal(), step), ("peak_memory_mib", 812.0 + len(variant), step),
        ]  # fmt: skip
        if variant != "none":
            size = variant.removeprefix("feat")
            points += [
                (f"gamma/g{size}", 0.4 * done**0.5 * (1 + 0.1 * rng.normal()), step),
                (f"gamma/d{size}", -0.1 * done, step),
                (f"attention_entropy/g{size}", 5.5 - done, step), (f"attention_distance/g{size}", 0.4, step),
            ]  # fmt: skip
        if step % 200 == 0 and step:
            fid = 28 + gain + 260 * np.exp(-5 * done)
            points += [
                ("fid", fid, step), ("fid_se", 0.35, step), ("fid_extrapolated", fid - 1.1, step),
                ("kid", fid / 9000, step), ("is", 5.4 - fid / 60, step), ("is_std", 0.08, step),
                ("precision", 0.7 - fid / 900, step), ("recall", 0.4 - fid / 1200, step),
                ("class_consistency", 0.95 - fid / 130, step), ("intra_fid", fid * 1.8, step),
                ("fid_local", fid / 3, step), ("real_floor", 0.4, step),
                ("fid_group/texture", fid * 0.8 - gain, step), ("fid_group/geometry", fid * 1.1 + gain, step),
            ]  # fmt: skip
            points += [
                (f"fid_class/{name}", fid * 1.8 + (gain if place > 2 else -gain / 2) + rng.normal(), step)
                for place, name in enumerate(CLASSES)
            ]
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


@pytest.fixture(scope="session", name="make_results")
def make_results_fixture() -> Callable[..., Results]:
    return make_results


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
