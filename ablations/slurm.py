"""Workers as a Slurm job array, submitted through submitit: each job runs `ablations.run ... --worker-only`.

Partition, account, time limit and memory are set by Slurm's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT,
SBATCH_TIMELIMIT, ... Before its time limit a job saves its cells, returns them to the queue and is requeued.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from submitit import Executor, Job
    from submitit.helpers import DelayedSubmission

_WARNING_SECONDS = 120  # between Slurm's signal and the time limit: enough to finish an evaluation and save
_MAX_MINUTES = 24 * 60  # time limit of a job without SBATCH_TIMELIMIT; then it is requeued


@dataclass
class WorkerJob:
    """One job of the array. submitit calls it, and `checkpoint` when Slurm signals that the time limit is near."""

    command: Sequence[str]
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __call__(self) -> None:
        # SIGUSR2 is meant for submitit, but Slurm sends it to all processes of the job, and it would kill the command.
        ignoring = ["/bin/sh", "-c", "trap '' USR2; exec \"$@\"", "sh", *self.command]
        self._process = subprocess.Popen(ignoring, cwd=self.folder)
        if status := self._process.wait():
            sys.exit(status)

    def checkpoint(self) -> DelayedSubmission:
        """Waits until the command has saved and ended; returns the requeued job, which is the same."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            # Not self._process.wait(): this runs in a signal handler during the `wait` above, which holds its lock.
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(self._process.pid).wait()
        return DelayedSubmission(WorkerJob(self.command, self.folder))


def open_executor(logs: Path, on_gpu: bool, cluster: str = "slurm") -> Executor:
    """The object that submits jobs. Raises ValueError where submitit or Slurm is not installed."""
    try:
        import submitit

        executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=sys.maxsize)
    except ImportError:
        raise ValueError("--launcher slurm: needs submitit; install it with: pip install '.[slurm]'") from None
    except RuntimeError as error:  # srun is not on the path
        raise ValueError(
            f"--launcher slurm: must run on a host from which jobs can be submitted, but {error}"
        ) from None
    executor.update_parameters(
        name="sagan",
        timeout_min=_MAX_MINUTES,
        slurm_signal_delay_s=_WARNING_SECONDS,
        slurm_additional_parameters={"requeue": True},
        **({"gpus_per_node": 1} if on_gpu else {}),
    )
    return executor


def submit(executor: Executor, command: Sequence[str], workers: int) -> list[Job[Any]]:
    """An array of `workers` jobs that run `command` in this folder. Raises ValueError where Slurm refuses them."""
    job = WorkerJob(tuple(command), Path.cwd())
    try:
        return list(executor.submit_array([job] * workers))
    except RuntimeError as error:
        raise ValueError(f"--launcher slurm: {error}") from None
