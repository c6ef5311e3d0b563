"""Workers as a Slurm job array, submitted through submitit: each job runs `ablations.run ... --worker-only`.

What Slurm should know (partition, account, time limit, memory) is said in its own variables: SBATCH_PARTITION,
SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ... A job that Slurm is about to end saves its cell, gives it back and is requeued.
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

_WARNING_SECONDS = 120  # before the time limit: workers have a minute to finish an evaluation and save
_MAX_MINUTES = 24 * 60  # of a job where SBATCH_TIMELIMIT says nothing; then it is requeued


@dataclass
class WorkerJob:
    """What one job of the array does. submitit calls it, and calls `checkpoint` when Slurm says that time is up."""

    command: Sequence[str]
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __call__(self) -> None:
        # Slurm signals all processes of a job, and SIGUSR2, which tells submitit, would kill the command.
        deaf = ["/bin/sh", "-c", "trap '' USR2; exec \"$@\"", "sh", *self.command]
        self._process = subprocess.Popen(deaf, cwd=self.folder)
        if status := self._process.wait():
            sys.exit(status)

    def checkpoint(self) -> DelayedSubmission:
        """Lets the worker save and leave; returns what the requeued job does: the same again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            # We are in a signal handler, within the `wait` above, which holds a lock that its like would wait for.
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(self._process.pid).wait()
        return DelayedSubmission(WorkerJob(self.command, self.folder))


def open_executor(logs: Path, on_gpu: bool, cluster: str = "slurm") -> Executor:
    """What submits jobs. Raises ValueError where submitit or Slurm is not installed."""
    try:
        import submitit

        executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=sys.maxsize)
    except ImportError:
        raise ValueError("--launcher slurm: needs submitit; install it with: pip install '.[slurm]'") from None
    except RuntimeError as error:  # srun is not on the path
        raise ValueError(f"--launcher slurm: must be called where jobs are submitted from, but {error}") from None
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
