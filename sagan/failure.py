"""failure.json: the error that ended a process of a run, for the program that started it (`sagan.train --parent`)."""

from __future__ import annotations

import errno
import json
import traceback
from dataclasses import dataclass
from pathlib import Path

NAME = "failure.json"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # of an OSError
# Of torch's allocator, of CUDA where no context fits, and of the libraries that allocate memory of their own.
_OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
                  "CUDNN_STATUS_ALLOC_FAILED")  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """`reason` is the error in at most 500 characters, `traceback` all of it."""

    reason: str
    traceback: str


def write_failure(folder: Path, error: BaseException, device: str) -> None:
    """To be called while `error` is being handled. Of several processes of one run only the first to call this
    writes: the others then fail because they can no longer reach it."""
    reason = out_of_gpu_memory(error, device) or f"{type(error).__name__}: {error}"
    try:
        with (folder / NAME).open("x") as file:
            json.dump({"reason": reason[:500], "traceback": "".join(traceback.format_exception(error))}, file)
    except (FileExistsError, FileNotFoundError):  # a second error; no folder yet, for input that is bad from the start
        pass


def is_broken_connection(error: BaseException) -> bool:
    """Whether `error` says that another process of the run has ended. That process has written the run's error."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def read_failure(folder: Path) -> Failure | None:
    """None where no process has failed, or was killed while it wrote."""
    try:
        return Failure(**json.loads((folder / NAME).read_text()))
    except (FileNotFoundError, ValueError):
        return None


def out_of_gpu_memory(error: BaseException, device: str) -> str | None:
    """One line that says how much memory `device` has and what to change, if that is what `error` is about."""
    causes = [error]  # an error in a recorded step may raise another at its end
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if not any(text in f"{type(cause).__name__}: {cause}" for cause in causes for text in _OUT_OF_MEMORY):
        return None
    import torch

    reason = (str(error).splitlines() or [""])[0].partition(". ")[0]  # torch's message has a paragraph more
    try:
        free, total = torch.cuda.mem_get_info(device)
        mine = torch.cuda.memory_reserved(device)
        memory = f"{total / 2**30:.1f} GiB, of which this worker could have {(free + mine) / 2**30:.1f} GiB"
    except (RuntimeError, AssertionError, ValueError):  # a GPU that no longer responds; no GPU
        memory = "too little"
    return (
        f"out of GPU memory: {device} has {memory}; set a smaller optim.batch_size, or start fewer --workers "
        f"({type(error).__name__}: {reason})"
    )
