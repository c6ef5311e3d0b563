"""Out of GPU memory: how it is recognised, what the failed cell says, and how memory is freed for the next cell."""

from __future__ import annotations

import gc
from collections.abc import Iterator

# Of torch's allocator (another process's error arrives as text); of CUDA where no context fits; of the libraries that
# take memory of their own.
_TEXTS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_gpu_memory(error: BaseException) -> bool:
    return any(
        type(cause).__name__ == "OutOfMemoryError" or any(text in str(cause) for text in _TEXTS)
        for cause in _causes(error)
    )


def out_of_gpu_memory(error: BaseException, device: str) -> str:
    """What a cell that failed of `error` on `device` says: how much there is, and the ways out."""
    reason = (str(error).splitlines() or [""])[0].partition(". ")[0]  # torch goes on for a paragraph
    return (
        f"out of GPU memory: {_memory_of(device)}; set a smaller optim.batch_size, or start fewer --workers "
        f"({type(error).__name__}: {reason})"
    )


def free_gpu_memory() -> None:
    """Gives the memory of the last cell back to the card, for this worker's next one and for other processes. Call it
    when no variable holds an error of the cell, whose traceback holds all that the cell had."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _memory_of(device: str) -> str:
    import torch

    try:
        free, total = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError, ValueError):  # a card that answers nothing any more; no card at all
        return f"{device} has too little"
    mine = torch.cuda.memory_reserved(device)
    return f"{device} has {total / 2**30:.1f} GiB, of which this worker could have {(free + mine) / 2**30:.1f} GiB"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # while a step is recorded, its end may raise once more
