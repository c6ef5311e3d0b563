"""Says in one line what keeps the stages from running here, with status 1; imports nothing that takes a second."""

from __future__ import annotations

import importlib.util
import sys

# By the names that they are imported by.
NEEDED = ("torch", "torchvision", "numpy", "scipy", "safetensors", "torch_fidelity", "mlflow", "optuna", "sqlalchemy")
NEEDED += ("alembic", "pandas", "matplotlib", "seaborn", "yaml", "jinja2", "rich", "filelock", "psutil", "PIL", "pytest")


def main(device: str) -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"these Python packages are missing: {', '.join(missing)}; tests/gpu/README.md says how to bring wheels")
        return 1
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("this machine has no CUDA device; DEVICE=cpu rehearses every stage at tiny sizes")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
