"""A run's folder, whose files sagan/README.md lists, and config.yaml, which says what is trained there.

Nothing here needs torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagan import journal
from sagan.config import Config, flatten, override

CONFIG, PROTOCOL, GENERATOR = "config.yaml", "protocol.json", "generator.safetensors"
_MACHINE = ("device", "threads", "data_root", "inception_weights", "cache_dir")


@dataclass(frozen=True)
class Run:
    """What is trained, and on what machine; when a run is resumed, only the machine's options may differ."""

    config: Config
    seed: int
    machine: dict[str, Any]  # options of the command by name: texts, numbers or None


def config_yaml(run: Run) -> bytes:
    """The content of config.yaml: one "name: value" per line, each value in JSON, which YAML includes."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in {"seed": run.seed, **flatten(run.config)}.items()]
    lines += ["# Of the machine where it was started. Options of the command take the place of these."]
    lines += [f"machine.{name}: {json.dumps(run.machine[name])}" for name in _MACHINE]
    return "".join(f"{line}\n" for line in lines).encode()


def read_run(folder: Path) -> Run | None:
    """The run in `folder`, or None where nothing is there. Raises ValueError for a folder that holds anything else."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"FOLDER: must be a folder, got the file {str(folder)!r}; name another one")
    elsewhere = "nothing in the folder was changed; name another one"
    content = folder / CONFIG
    if content.is_file():
        try:
            return _parsed(content.read_text())
        except (ValueError, KeyError) as error:
            raise ValueError(f"{content}: must be a config that sagan.train wrote, but {error}; {elsewhere}") from None
    for path in sorted(folder.iterdir()):
        # A process that was killed while it created the folder may leave a draft of the config and an empty journal.
        is_empty_journal = path.name == journal.NAME and path.stat().st_size == 0
        if not is_empty_journal and not path.name.startswith(f".{CONFIG}."):
            raise ValueError(
                f"FOLDER: must be new, empty, or the folder of a run, got {str(folder)!r}, which holds {path.name!r} "
                f"and no {CONFIG}; {elsewhere}"
            )
    return None


def _parsed(text: str) -> Run:
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, value = line.partition(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not colon:
            raise ValueError(f"line {number} is not NAME: VALUE")
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:  # a text without quotes, as a person writes it
            values[name.strip()] = value.strip()
    machine = {name: values.pop(f"machine.{name}", None) for name in _MACHINE}
    missing = [name for name in ("seed", *flatten(Config())) if name not in values]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing[:5])}")
    seed = values.pop("seed")
    if type(seed) is not int:
        raise ValueError(f"seed is {seed!r}")
    for name, value in machine.items():
        if not isinstance(value, int if name == "threads" else str) and value is not None:
            raise ValueError(f"machine.{name} is {value!r}")
    return Run(override(Config(), values), seed, machine)
