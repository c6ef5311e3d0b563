"""Stage 1: what machine this is. The card, its driver and limits, the processors, and the versions of what matters."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from ablations.machine import git_commit
from sagan.limits import free_memory_mib, usable_cores

PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "mlflow", "optuna", "sqlalchemy", "torch-fidelity")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    print(f"commit {os.environ.get('COMMIT') or git_commit() or 'unknown'}, Python {platform.python_version()}")
    print(", ".join(f"{package} {installed(package)}" for package in PACKAGES))
    total = psutil.virtual_memory().total / 2**30
    vectors = torch.backends.cpu.get_cpu_capability()
    print(f"{usable_cores()} usable cores ({vectors}), {free_memory_mib() / 1024:.0f} of {total:.0f} GiB free")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            memory = card.total_memory / 2**30
            print(f"cuda:{index}: {card.name}, {memory:.0f} GiB, {card.multi_processor_count} multiprocessors")
        print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {torch.cuda.nccl.version()}")
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], check=False)


if __name__ == "__main__":
    main()
