"""The only writer to MLflow: an experiment a study, a parent run a launch, a child run a cell.

A cell's run is found again by its tags, so whoever resumes the cell resumes its run. Training never waits for the
tracker for long and never dies with it: calls that fail stay in order in an outbox and are tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ablations.outbox import Outbox, open_client
from ablations.pictures import picture_files
from ablations.plan import Cell, Study, show
from ablations.preflight import sqlite_path
from ablations.sharing import Source, find_source
from sagan.config import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FLUSH_SECONDS = 1.0
_MAX_BATCH = 1000  # metrics in one call, a limit of MLflow's


@dataclass(frozen=True)
class Result:
    """What the store says of a cell that has ended; `shared_study` is the study that trained it, if not its own."""

    outcome: str
    metrics: dict[str, float]  # last values
    shared_study: str | None = None


class Store:
    """An MLflow store that answers. Creates the tables of a new SQLite file; raises ValueError where it cannot."""

    def __init__(self, uri: str) -> None:
        path = sqlite_path(uri)
        # Two launchers that make the tables of one new file at once would both fail.
        with FileLock(f"{path}.lock") if path else contextlib.nullcontext():
            try:
                self.client = open_client(uri)
                self.client.search_experiments(max_results=1)
            except Exception as error:  # whatever the client, its driver or the network raises
                reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
                raise ValueError(f"does not answer, got {uri!r} ({reason}); start the server or correct it") from None
            if path:
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers do not block writers

    def check_experiment(self, study: Study) -> None:
        """Raises ValueError where the study can have no experiment."""
        found = self.client.get_experiment_by_name(study.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ValueError(f"experiment {study.name!r} is deleted in this store; restore it, or rename the study")

    def check_images(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        """Raises ValueError where cells of the study were trained on other images than these, by config digest."""
        experiment_id = self.find_experiment(study)
        if experiment_id is None or not fingerprints:
            return
        for run in self.runs(experiment_id, "tags.kind = 'cell'"):
            before, now = run.data.tags.get("data_fingerprint"), fingerprints.get(run.data.tags["config_digest"])
            if before and now and before != now:
                raise ValueError(
                    f"{study.name}: {run.info.run_name} was trained on other images ({before}) than are there now "
                    f"({now}); bring the old ones back, or start in another folder or store"
                )

    def open_experiment(self, study: Study) -> str:
        """The id of the study's experiment, made now if there is none, with its question as description."""
        self.check_experiment(study)
        experiment_id = self.find_experiment(study) or self._create_experiment(study)
        tags = {"question": study.question, "mlflow.note.content": study.question, "paper": study.paper}
        for key, value in tags.items():
            if value is not None:
                self.client.set_experiment_tag(experiment_id, key, value)
        return experiment_id

    def _create_experiment(self, study: Study) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(study.name))
        except MlflowException:  # another launcher was first
            experiment_id = self.find_experiment(study)
            if experiment_id is None:
                raise
            return experiment_id

    def find_experiment(self, study: Study) -> str | None:
        found = self.client.get_experiment_by_name(study.name)
        return str(found.experiment_id) if found and found.lifecycle_stage == "active" else None

    def start_launch(self, experiment_id: str, study: Study, process: Mapping[str, Any], commit: str | None) -> str:
        """The parent run of a launch; `process` says who launches, for whoever finds the run orphaned."""
        tags = {
            "kind": "launch",
            "study": study.name,
            "preset": study.preset,
            "protocol": study.protocol,
            "baseline": study.baseline,
            "plan": plan_digest(study),
            "process": json.dumps(process),
            **({"git_commit": commit} if commit else {}),
        }
        name = f"launch {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}"
        run_id = str(self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
        self.client.log_text(run_id, study.text, "study.yaml")
        self.client.log_dict(run_id, study.plan(), "plan.json")
        return run_id

    def log_document(self, run_id: str, name: str, content: dict[str, Any]) -> None:
        """A JSON artifact, in place of an earlier one of that name."""
        self.client.log_dict(run_id, content, name)

    def end_run(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)

    def recorded(self, experiment_id: str, shared: bool = True) -> dict[str, Result]:
        """{cell's key: result} of the cells whose outcome stands in the store; `shared` counts copies of other runs."""
        results: dict[str, Result] = {}
        for run in self.runs(experiment_id, "tags.kind = 'cell'"):
            tags = run.data.tags
            trained = "shared_run" not in tags
            if "outcome" in tags and (trained or (shared and _key(run) not in results)):
                results[_key(run)] = Result(tags["outcome"], run.data.metrics, tags.get("shared_study"))
        return results

    def end_abandoned(self, experiment_id: str, living: Container[str]) -> None:
        """Ends the runs still marked RUNNING whose cell (by key) nobody trains: their process died."""
        for run in self.runs(experiment_id, "tags.kind = 'cell' and attributes.status = 'RUNNING'"):
            if _key(run) not in living:
                self.end_run(run.info.run_id, "FINISHED" if "outcome" in run.data.tags else "KILLED")

    def running_launches(self, experiment_id: str) -> dict[str, dict[str, Any]]:
        """{run id: process} of the launches that have not ended, as far as the store knows."""
        runs = self.runs(experiment_id, "tags.kind = 'launch' and attributes.status = 'RUNNING'")
        return {run.info.run_id: json.loads(run.data.tags["process"]) for run in runs}

    def runs(self, experiment_id: str, condition: str) -> Iterator[Run]:
        token: str | None = None
        while token != "":
            page = self.client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
            yield from page
            token = page.token or ""


def plan_digest(study: Study) -> str:
    """16 hexadecimal digits: launches of the same variants at the same seeds and protocol have the same."""
    return hashlib.sha256(json.dumps(study.plan(), sort_keys=True).encode()).hexdigest()[:16]


class CellRun:
    """The run of one cell, made or resumed; a copy of another run is taken for it only if `shared`.

    Raises what MLflow raises when the store is away at the start.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        parent: str,
        cell: Cell,
        about: Mapping[str, str],
        shared: bool = True,
    ) -> None:
        self.cell = cell
        self._client = client
        found = self._find(client, experiment_id, shared)
        self.outcome = found.data.tags.get("outcome") if found else None
        self.run_id = str(found.info.run_id if found else self._create(client, experiment_id, parent, about))
        self._outbox = Outbox(client)
        self._metrics: list[Any] = []
        self._sent = time.monotonic()
        if found and not self.outcome:
            self._put("update_run", status="RUNNING")
            if "error" in found.data.tags:
                self._put("delete_tag", key="error")
        self._put("log_dict", dictionary=_nested(flatten(cell.config)), artifact_file="config.yaml")

    def describe(self, tags: Mapping[str, str]) -> None:
        """Adds what is known once the data set is open."""
        for key, value in tags.items():
            self._put("set_tag", key=key, value=value)
        self._outbox.send()

    def log(self, step: int, metrics: Mapping[str, float], now: bool = False) -> None:
        """Metrics at `step`; they travel about once a second, or at once if `now`. Only finite values are stored."""
        from mlflow.entities import Metric

        stamp = int(time.time() * 1000)
        self._metrics += [Metric(key, value, stamp, step) for key, value in metrics.items() if np.isfinite(value)]
        if now or time.monotonic() - self._sent > _FLUSH_SECONDS:
            self._flush()

    def log_images(self, step: int, images: Mapping[str, NDArray[Any]], directory: Path) -> None:
        """Sample grids and attention maps: written to the cell's directory, then sent."""
        for name, content in picture_files(step, images).items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._put("log_artifact", local_path=str(path), artifact_path=str(Path(name).parent))
        if "samples" in images:
            self._put("set_tag", key="tile_px", value=str(images["samples"].shape[2]))
        self._outbox.send()

    def finish(self, outcome: str, last_step: int, directory: Path) -> bool:
        """Stores the outcome; False where the store did not take it."""
        self._flush()
        if (directory / "generator.safetensors").exists():
            self._put("log_artifact", local_path=str(directory / "generator.safetensors"))
        self._put("set_tag", key="last_step", value=str(last_step))
        self._put("set_tag", key="outcome", value=outcome)
        return self._end("FINISHED")

    def find_source(self, data_fingerprint: str, metric_fingerprint: str) -> Source | None:
        """Another study's result of this cell."""
        return find_source(self._client, self.cell, data_fingerprint, metric_fingerprint)

    def share(self, source: Source) -> bool:
        """Ends as a copy of `source`. Its tags arrive in one call and last: half a copy has no outcome."""
        from mlflow.entities import RunTag

        self._metrics = list(source.points)
        self._flush()
        tags = {**source.about, "shared_run": source.run_id, "shared_study": source.study, "outcome": source.outcome}
        self._put("log_batch", tags=[RunTag(key, value) for key, value in tags.items()])
        return self._end("FINISHED")

    def fail(self, traceback: str) -> None:
        self._flush()
        self._put("log_text", text=traceback, artifact_file="traceback.txt")
        self._put("set_tag", key="error", value=traceback.strip().splitlines()[-1][:500])
        self._end("FAILED")

    def pause(self) -> None:
        """The cell goes back to the queue: until it is resumed nobody trains it, and the store says so."""
        self._flush()
        self._end("KILLED")

    def _find(self, client: MlflowClient, experiment_id: str, shared: bool) -> Run | None:
        cell = self.cell
        condition = (
            f"tags.kind = 'cell' and tags.variant = '{cell.variant}' and tags.seed = '{cell.seed}' "
            f"and tags.config_digest = '{cell.config_digest}'"
        )
        runs = client.search_runs([experiment_id], condition, order_by=["attributes.start_time DESC"])
        same = [run for run in runs if _key(run) == cell.key and (shared or "shared_run" not in run.data.tags)]
        return max(same, key=lambda run: "outcome" in run.data.tags, default=None)

    def _create(self, client: MlflowClient, experiment_id: str, parent: str, about: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        cell = self.cell
        tags = {
            "kind": "cell",
            "mlflow.parentRunId": parent,
            "study": cell.study,
            "preset": cell.preset,
            "protocol": cell.protocol,
            "variant": cell.variant,
            "seed": str(cell.seed),
            "baseline": cell.baseline,
            "config_digest": cell.config_digest,
            **{f"factor.{name}": level for name, level in cell.factors.items()},
            **({"paper": cell.paper} if cell.paper else {}),
            **about,
        }
        run_id = str(client.create_run(experiment_id, run_name=cell.name, tags=tags).info.run_id)
        client.log_batch(run_id, params=[Param(name, show(value)) for name, value in flatten(cell.config).items()])
        return run_id

    def _put(self, method: str, **arguments: Any) -> None:
        self._outbox.put(method, run_id=self.run_id, **arguments)

    def _flush(self) -> None:
        while self._metrics:
            self._put("log_batch", metrics=self._metrics[:_MAX_BATCH])
            self._metrics = self._metrics[_MAX_BATCH:]
        self._sent = time.monotonic()
        self._outbox.send()

    def _end(self, status: str) -> bool:
        self._put("set_terminated", status=status)
        return self._outbox.close()


def _key(run: Run) -> str:
    """Cell.key, from the tags of a run."""
    tags = run.data.tags
    return "|".join(tags.get(name, "") for name in ("study", "protocol", "variant", "seed", "config_digest"))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.lr_g": 1} as {"optim": {"lr_g": 1}}, with lists for tuples, as YAML likes it."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        node = nested
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return nested
