"""`ablations.run` on a card that holds little: `python small_card.py ARGUMENTS`.

A training process may take 1 GiB of the card. On a CPU, which has no such limit, a large batch raises what torch would
raise.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ablations import run
from sagan.training import Trainer

LARGE_BATCH = 16384  # some 7 GiB
_LIMIT = 2**30


class OnSmallCard(Trainer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        device = torch.device(options["device"])
        if device.type == "cuda":
            _, total = torch.cuda.mem_get_info(device)
            torch.cuda.set_per_process_memory_fraction(_LIMIT / total, device)
        super().__init__(*arguments, **options)

    def _train_step(self) -> None:
        if self.device.type == "cpu" and self.config.optim.batch_size >= LARGE_BATCH:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. (Raised by the test.)")
        super()._train_step()


if __name__ == "__main__":
    from small_card import OnSmallCard as Imported  # by a name under which other processes find it

    sys.exit(run.main(sys.argv[1:], trainer=Imported))
