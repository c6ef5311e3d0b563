"""Says in one line what keeps the stages from running here, with status 1."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
COMPLETE = ("torch", "torchvision")  # where these are, what they need is, too, under whatever names


def missing_packages(requirements: list[str], seen: set[str]) -> Iterator[str]:
    """Packages that are required, directly or by others, and are not installed."""
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        if name is None or "extra ==" in requirement or name[0] in seen or not _concerns_us(requirement):
            continue
        seen.add(name[0])
        try:
            needs = requires(name[0]) or []
        except PackageNotFoundError:
            yield name[0]
        else:
            yield from missing_packages([] if name[0] in COMPLETE else needs, seen)


def _concerns_us(requirement: str) -> bool:
    if ";" not in requirement:
        return True
    try:
        from packaging.markers import Marker
    except ImportError:  # named as missing, then
        return True
    return Marker(requirement.partition(";")[2]).evaluate()


def main(device: str) -> int:
    wanted = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    missing = list(missing_packages([*wanted, "pytest", "pytest-xdist"], set()))
    if missing:
        print(f"Python packages are missing: {', '.join(missing)}; tests/gpu/README.md says how to bring their wheels")
        return 1
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("this machine has no CUDA device; DEVICE=cpu rehearses every stage at tiny sizes")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
