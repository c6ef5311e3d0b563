"""What must hold before a launch touches anything. Nothing made here stays; torch, MLflow and Optuna are not needed."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from sagan.options import check_folder


def check_storage(url: str) -> None:
    """Raises ValueError where no queue can be kept at `url`."""
    if not url.startswith(("sqlite:///", "postgresql")):
        raise ValueError(f"must be a sqlite or postgresql URL, got {url!r}; write sqlite:///optuna.db")
    _check_sqlite(url, "sqlite:///optuna.db")


def check_store(uri: str) -> None:
    """Raises ValueError where no MLflow store of ours can be at `uri`. Whether it answers is seen when it is opened."""
    if not uri.startswith(("sqlite:///", "postgresql", "http://", "https://")):
        raise ValueError(f"must be a sqlite, postgresql or http URI, got {uri!r}; write sqlite:///mlflow.db")
    _check_sqlite(uri, "sqlite:///mlflow.db")


def check_shared(url: str) -> None:
    """Raises ValueError for a database that other hosts cannot reach."""
    if sqlite_path(url) is not None:
        raise ValueError(f"must be a server that all nodes reach, got {url!r}; write postgresql+psycopg://HOST/NAME")


def sqlite_path(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def absolute(url: str) -> str:
    """The same database for a process in another folder."""
    path = sqlite_path(url)
    return f"sqlite:///{path.resolve()}" if path is not None else url


def _check_sqlite(url: str, example: str) -> None:
    path = sqlite_path(url)
    if path is None:
        return
    if path.name in ("", ":memory:") or path.is_dir():
        raise ValueError(f"must name a file that workers share, got {url!r}; write {example}")
    if not path.parent.is_dir():
        raise ValueError(f"must be in a folder that exists, got {url!r}; make it first")
    whole = str(path.resolve())
    if "?" in whole or unquote(whole) != whole:
        raise ValueError(
            f"must be in a folder whose path has no ? and no % before two hexadecimal digits, which SQLAlchemy and "
            f"MLflow read as parts of a URL, got {whole!r}; work in another folder"
        )
    check_folder(path.parent)
    # Not by opening it: closing any handle of a SQLite file drops the locks that this process holds on it.
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"must be a file that can be written, got {url!r}; change its permissions")
