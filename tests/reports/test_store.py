from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.loading import load_results
from reports.store import DEFAULT_URI, Store


def test_histories_are_what_mlflows_client_reads(store: Any) -> None:
    reader, client = Store(store.uri), store.client()
    run = next(run for run in reader.runs() if (run.tags.get("variant"), run.tags.get("seed")) == ("feat32", "1"))
    histories = reader.histories([run])
    for key in ("fid", "gamma/g32", "num_params_g"):
        ours = histories[histories["key"] == key]
        theirs = client.get_metric_history(run.id, key)
        assert list(zip(ours["step"], ours["value"], strict=True)) == [(point.step, point.value) for point in theirs]


def values_of(fake: Any) -> list[tuple[int, float]]:
    """Step and value of all that the store holds."""
    reader = Store(fake.uri)
    histories = reader.histories(reader.runs())
    return list(zip(histories["step"], histories["value"], strict=True))


def test_a_replayed_step_counts_once_and_what_is_not_finite_is_nan(fake: Any) -> None:
    fake.cell("s", "none", 0, [("fid", 9.0, 1), ("fid", 8.0, 2), ("fid", 8.5, 2), ("fid", 7.0, 3),
                               ("fid", math.inf, 4), ("fid", -math.inf, 5), ("fid", math.nan, 6)])  # fmt: skip
    nan = pytest.approx(math.nan, nan_ok=True)
    assert values_of(fake) == [(1, 9.0), (2, 8.5), (3, 7.0), (4, nan), (5, nan), (6, nan)]


def test_deleted_runs_and_runs_of_other_projects_are_not_read(fake: Any) -> None:
    fake.client().delete_run(fake.cell("s", "none", 0, []))
    fake.client().create_run(fake.experiment("other"))
    assert Store(fake.uri).runs() == []


def test_artifacts_are_found_after_the_folder_was_moved(fake: Any, tmp_path: Path) -> None:
    launch = fake.launch("s", ("none",), (0,))
    moved = fake.folder.rename(tmp_path / "moved")
    # MLflow's own layout below mlruns is experiment id / run id / artifacts; the fake one has its study's name there.
    reader = Store(f"sqlite:///{moved}/mlflow.db")
    run = next(run for run in reader.runs() if run.id == launch)
    plan = reader.document(run, "plan.json")
    assert plan is not None and plan["study"] == "s"


def test_a_store_beside_which_no_file_can_be_made_is_read(fake: Any) -> None:
    fake.cell("s", "none", 0, [("fid", 9.0, 100)])
    path = fake.folder / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("update metrics set value = 8")
        connection.commit()
        log = path.with_name("mlflow.db-wal").read_bytes()
    path.with_name("mlflow.db-wal").write_bytes(log)  # as a launch leaves it that was killed
    path.with_name("mlflow.db-shm").mkdir()  # SQLite cannot make it, as in a folder that one may only read
    before = sorted(fake.folder.iterdir())
    assert values_of(fake) == [(100, 8.0)]
    assert sorted(fake.folder.iterdir()) == before


def test_a_store_is_named_by_the_option_else_the_variable_else_the_default(
    store: Any, scratch: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = scratch()
    monkeypatch.chdir(scratch().folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert [Store(other.uri).uri, Store().uri] == [other.uri, store.uri]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert Store().uri == DEFAULT_URI


def test_what_is_no_mlflow_store_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        connection.execute("create table trials (id)")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" * 100)
    with pytest.raises(ValueError, match="is no MLflow store"):
        Store(f"sqlite:///{tmp_path}/optuna.db")
    with pytest.raises(ValueError, match="does not open .*check --tracking-uri"):
        Store(f"sqlite:///{tmp_path}/picture.png")
    with pytest.raises(ValueError, match="must be a database or a server"):
        Store("mlruns")


def test_a_server_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="does not answer .*check --tracking-uri"):
        Store("http://127.0.0.1:9")


@pytest.mark.parametrize("password", ["secret", "a/secret", "a@secret"])
def test_no_password_is_shown(password: str) -> None:
    with pytest.raises(ValueError) as caught:
        Store(f"postgresql+psycopg2://me:{password}@127.0.0.1:9/mlflow")
    assert "secret" not in str(caught.value)


def test_results_through_the_client_of_a_server_equal_those_by_sql(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from reports import store as module

    by_sql = load_results(Store(store.uri))[0]
    reader = Store(store.uri)
    monkeypatch.setattr(reader, "_source", module._Server(store.uri))  # the client takes a database just as well
    by_client = load_results(reader)[0]
    assert by_client.cells.equals(by_sql.cells)
    assert by_client.final_scores[sorted(by_client.final_scores)].equals(
        by_sql.final_scores[sorted(by_sql.final_scores)]
    )
