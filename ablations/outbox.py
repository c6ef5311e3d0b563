"""The client of the tracking store, and calls to it that outlast its absence, in the order they were made."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RETRY_SECONDS = 30.0  # between attempts while the store does not answer
_LAST_SECONDS = 60.0  # at the end of a cell, for a store that does not answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One call of MlflowClient, as data, so that it can wait."""

    method: str
    arguments: dict[str, Any]


class Outbox:
    """Calls that reach the store in order. A failed one stays first in line; nothing is dropped before `close`."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._waiting: list[Call] = []
        self._quiet_until = 0.0

    def put(self, method: str, **arguments: Any) -> None:
        self._waiting.append(Call(method, arguments))

    def send(self) -> bool:
        """Sends what waits; False while some of it still does."""
        if time.monotonic() < self._quiet_until:
            return not self._waiting
        while self._waiting:
            call = self._waiting[0]
            try:
                getattr(self._client, call.method)(**call.arguments)
            except Exception as error:  # training outlives its tracker
                _log.warning("tracking: %s failed, trying again later: %s", call.method, str(error).splitlines()[:1])
                self._quiet_until = time.monotonic() + _RETRY_SECONDS
                return False
            del self._waiting[0]
        return True

    def close(self) -> bool:
        """Sends what waits, for a minute at most; False when the store did not take it all."""
        give_up = time.monotonic() + _LAST_SECONDS
        self._quiet_until = 0.0
        while not self.send():
            if time.monotonic() > give_up:
                _log.error("tracking: the store did not answer; %d calls are lost", len(self._waiting))
                return False
            time.sleep(1.0)
            self._quiet_until = 0.0
        return True


def open_client(uri: str) -> MlflowClient:
    """A client with bounded waits (MLflow's own are four minutes a call) that reports no usage to its makers."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)
