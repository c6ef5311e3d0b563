"""Checks of database URLs before a launch. They leave no files, and do not import torch, MLflow or Optuna."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from sagan.options import check_folder

DEFAULT_STORE = "sqlite:///mlflow.db"


def tracking_uri(given: str | None) -> tuple[str, str]:
    """What named the MLflow store, and its URI: the option, else the variable, else mlflow.db in this folder."""
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    if given is None and variable:
        return "MLFLOW_TRACKING_URI", variable
    return "--tracking-uri", given or DEFAULT_STORE


def without_password(url: str) -> str:
    """A URL, or a text with one in it, without its password: for messages."""
    return re.sub(r"(//[^:/@\s]*):\S*@", r"\1:***@", url)


def check_storage(url: str, will_write: bool = True) -> None:
    """Raises ValueError where `url` cannot hold the queue, with `will_write` also where its file is read-only."""
    _check(url, "sqlite or postgresql URL", ("sqlite:///", "postgresql"), "sqlite:///optuna.db", will_write)


def check_store(uri: str, will_write: bool = True) -> None:
    """Raises ValueError where `uri` cannot be an MLflow store. Whether a server answers is not checked."""
    starts = ("sqlite:///", "postgresql", "http://", "https://")
    _check(uri, "sqlite, postgresql or http URI", starts, DEFAULT_STORE, will_write)


def check_shared(url: str) -> None:
    """Raises ValueError for a database that other hosts cannot reach."""
    if sqlite_path(url) is not None:
        raise ValueError(
            f"must be a server that all nodes reach, got {without_password(url)!r}; write "
            f"postgresql+psycopg://HOST/NAME"
        )


def sqlite_path(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def absolute(url: str) -> str:
    """`url` with an absolute path, so that it is valid in every folder."""
    path = sqlite_path(url)
    return f"sqlite:///{path.resolve()}" if path is not None else url


def _check(url: str, kinds: str, starts: tuple[str, ...], example: str, will_write: bool) -> None:
    if not url.startswith(starts):
        raise ValueError(f"must be a {kinds}, got {without_password(url)!r}; write {example}")
    path = sqlite_path(url)
    if path is None:
        return
    if path.name in ("", ":memory:") or path.is_dir():
        raise ValueError(f"must name a file that workers share, got {url!r}; write {example}")
    if not path.parent.is_dir():
        raise ValueError(f"must be in a folder that exists, got {url!r}; make it first")
    resolved = str(path.resolve())
    if "?" in resolved or unquote(resolved) != resolved:
        raise ValueError(
            f"must be in a folder whose path has no ? and no % before two hexadecimal digits, which SQLAlchemy and "
            f"MLflow read as parts of a URL, got {resolved!r}; work in another folder"
        )
    if not will_write:
        return
    check_folder(path.parent)
    # Without opening the file: closing any handle of a SQLite file drops the locks that this process holds on it.
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"must be a file that can be written, got {url!r}; change its permissions")
