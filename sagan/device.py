"""The device that a command line names."""

from __future__ import annotations

import torch


def named_device(name: str) -> torch.device:
    """Raises ValueError for a name that is none, and for a device that this machine or this torch lacks."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # a name that is none; a torch that was built without it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device: must be one that torch has here, got {name!r} ({reason}); write cpu") from None
    return torch.device(name)
