"""`ablations.run` and its workers on a card that holds little: `python small_card.py run|work ARGUMENTS`.

A worker may take 1 GiB of the card. On a CPU, which has no such limit, a large batch raises what torch would raise.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch

from ablations import run, worker
from sagan.training import Trainer

LARGE_BATCH = 16384  # some 7 GiB
_LIMIT = 2**30
_trainers: weakref.WeakSet[Trainer] = weakref.WeakSet()


class OnSmallCard(Trainer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        assert not _trainers, "the trainer of the cell before is still in memory"
        _trainers.add(self)
        super().__init__(*arguments, **options)

    def _train_step(self) -> None:
        if self.device.type == "cpu" and self.config.optim.batch_size >= LARGE_BATCH:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. (Raised by the test.)")
        super()._train_step()


def work(arguments: list[str]) -> int:
    device = torch.device(arguments[arguments.index("--device") + 1])
    torch.set_num_threads(1)
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(_LIMIT / total, device)
    return worker.main(arguments, trainer=OnSmallCard)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    sys.exit(work(arguments) if what == "work" else run.main(arguments, program=(sys.executable, __file__, "work")))
