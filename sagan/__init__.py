"""The model, its training, its data and its metrics. `load_generator` is here for programs that want its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["load_generator"]

if TYPE_CHECKING:
    from sagan.generator_file import load_generator
else:

    def __getattr__(name: str) -> object:
        # Not imported before it is asked for: torch takes seconds, and a command line reads sagan.config without it.
        if name != "load_generator":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sagan.generator_file import load_generator

        return load_generator
