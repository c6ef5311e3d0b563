"""The device that a command line names."""

from __future__ import annotations

import torch


def named_device(name: str) -> torch.device:
    """Raises ValueError for an invalid name, and for a device that this machine or this build of torch lacks."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # an invalid name; torch built without that device
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device: must be one that torch has here, got {name!r} ({reason}); write cpu") from None
    return torch.device(name)
