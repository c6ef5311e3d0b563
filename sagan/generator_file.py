"""generator.safetensors: a trained generator's weights, its config and the names of its classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from sagan.checkpoint import write_atomically
from sagan.config import Config, flatten, override
from sagan.networks import Generator

_ENTRY = "sagan"  # of the file's metadata


def save_generator(path: Path, generator: Generator, config: Config, classes: Sequence[str]) -> None:
    """Weights and buffers as they are, batch-norm statistics included; `classes` are the data set's."""
    # One entry, because safetensors writes several in any order and equal weights should give equal bytes.
    metadata = {_ENTRY: json.dumps({"config": flatten(config), "classes": classes})}
    state = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    write_atomically(path, to_safetensors(state, metadata))


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> tuple[Generator, tuple[str, ...]]:
    """The generator of a generator.safetensors, ready for sampling, and its class names in the order of the labels.

    An unconditional generator has no class names, (), and ignores its labels. Raises ValueError for a file that is
    damaged or not one of ours, and OSError where it cannot be opened.
    """
    generator, config, classes = read_generator(path, device)
    return generator, () if config.model.conditioning == "none" else classes


def read_generator(path: str | Path, device: str | torch.device = "cpu") -> tuple[Generator, Config, tuple[str, ...]]:
    """As `load_generator`, with the config that it was trained with; without labels the class names are ("all",)."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(
            f"{path}: must be a generator.safetensors, got a file that is damaged or something else ({error})"
        ) from None
    if _ENTRY not in metadata:
        raise ValueError(
            f"{path}: must be a generator.safetensors that training wrote, got one without the metadata {_ENTRY!r}"
        )
    try:
        written = json.loads(metadata[_ENTRY])
        config, classes = override(Config(), written["config"]), tuple(map(str, written["classes"]))
        generator = Generator(config.model, config.data.resolution, len(classes))
        generator.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: its config and its weights must make a generator of this version, but {reason}"
        ) from None
    generator.to(device).eval().requires_grad_(False)
    return generator, config, classes
