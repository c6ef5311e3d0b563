"""A thread that uploads the journals of attempts to MLflow, about once a second, during training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.attempts import Attempt

if TYPE_CHECKING:
    from ablations.tracking.store import Store

_INTERVAL_SECONDS = 1.0  # between two reads of the journals
_RETRY_SECONDS = 10.0  # while the store does not answer
_log = logging.getLogger(__name__)


@dataclass
class _Followed:
    attempt: Attempt
    has_ended: bool = False
    is_sent: bool = False
    is_taken: bool = False  # by `take_ended`


class Uploader:
    """Uploads the attempts of one launcher at the cells of one study.

    Nothing is uploaded while `may_send` returns False: a launcher that was stopped for long may have lost its cells.
    After attempts have ended `write_table` is called, and again if the store was unreachable.
    """

    def __init__(
        self, store: Store, experiment_id: str, may_send: Callable[[], bool], write_table: Callable[[], None]
    ) -> None:
        self._store, self._experiment_id, self._may_send = store, experiment_id, may_send
        self._write_table, self._is_table_old = write_table, False
        self._followed: dict[Path, _Followed] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # held during each upload; taken before the other one
        self._wake, self._closing = threading.Event(), False
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def follow(self, attempt: Attempt) -> None:
        """Begins to upload an attempt, after the rest of earlier attempts at its cell."""
        with self._lock:
            for folder in [folder for folder, f in self._followed.items() if f.is_sent and f.is_taken]:
                del self._followed[folder]
            for earlier in attempt.earlier:
                if earlier.has_unsent and earlier.folder not in self._followed:
                    self._followed[earlier.folder] = _Followed(earlier, is_taken=True)
            self._followed[attempt.folder] = _Followed(attempt)

    def finish(self, attempt: Attempt) -> None:
        """The process of this attempt has ended: the rest of its journal is uploaded at once, with how it ended."""
        with self._lock:
            self._followed[attempt.folder] = _Followed(attempt, has_ended=True)
        self._wake.set()

    def take_ended(self) -> list[Attempt]:
        """Ended attempts whose upload is complete, each returned once. While MLflow is unreachable, also those still
        to be uploaded."""
        with self._lock:
            is_waiting = time.monotonic() < self._retry_at
            found = [f for f in self._followed.values() if f.has_ended and not f.is_taken and (f.is_sent or is_waiting)]
            for followed in found:
                followed.is_taken = True
            return [followed.attempt for followed in found]

    def pause(self, attempt: Attempt) -> None:
        """Uploads no more of it until `finish`; returns when an upload that is under way has ended."""
        with self._lock:
            self._followed.pop(attempt.folder, None)
        with self._sending:
            pass

    def drop(self, attempt: Attempt) -> None:
        """The claim to its cell is lost: nothing more of it is ever uploaded."""
        with self._lock:
            self._followed.pop(attempt.folder, None)
        attempt.disable_upload()

    def close(self, patience: float) -> None:
        """Uploads what is left, for `patience` seconds at most."""
        self._closing = True
        self._wake.set()
        self._thread.join(patience)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(_INTERVAL_SECONDS)
            self._wake.clear()
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        with self._lock:
            waiting = [followed for followed in self._followed.values() if not followed.is_sent]
        for followed in waiting:
            began = time.monotonic()
            if began < self._retry_at or not self._may_send():
                return
            with self._sending:
                with self._lock:
                    if self._followed.get(followed.attempt.folder) is not followed:
                        continue  # paused, dropped, or ended: `finish` has woken the next round
                is_sent = self._store.try_to_send(self._experiment_id, followed.attempt, followed.has_ended)
            if not is_sent:
                seconds = time.monotonic() - began
                self._retry_at = time.monotonic() + max(_RETRY_SECONDS, 10 * seconds)
                return
            followed.is_sent = followed.has_ended
            self._is_table_old |= followed.has_ended
        if self._is_table_old and time.monotonic() >= self._retry_at:
            self._write_table()
            self._is_table_old = self._store.is_unreachable
