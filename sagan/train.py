"""Train one SAGAN in one folder: `python -m sagan.train FOLDER --preset embedded --seed 0`; again: resume.

sagan/README.md describes the options, the exit status and what the folder holds. `torchrun --nproc-per-node=2 -m
sagan.train ...` is the same run on several processes, of which the first writes. A program that starts runs gives its
process id as `--parent`: then a run ends at most ten seconds after that program, and an error is also written to the
folder (sagan/failure.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sagan import journal
from sagan.config import Config, diff, is_prefix_of, override
from sagan.failure import FULL_DISK, is_broken_connection, write_failure
from sagan.journal import Journal, Record
from sagan.limits import set_threads
from sagan.options import (
    DEFAULT_CACHE,
    MAX_SEED,
    Parser,
    add_shared,
    changes_of,
    check_folder,
    check_machine,
    escape_unprintable_output,
    existing,
    preset_of,
)
from sagan.run_folder import CONFIG, GENERATOR, PROTOCOL, Run, config_yaml, read_run

if TYPE_CHECKING:
    from sagan.training import Trainer

EXIT_DISK_FULL = 74  # EX_IOERR of sysexits.h
EXIT_NOT_STARTED = 75  # `begin` returned False
_QUIET_SECONDS = 10.0  # between two lines of losses without a terminal; every evaluation has a line


def main(
    arguments: Sequence[str] | None = None,
    trainer: Callable[..., Trainer] | None = None,
    begin: Callable[[Trainer], bool] = lambda _: True,
) -> int:
    """Returns the exit status; a signal that comes before training raises SystemExit with the signal's own status.

    `trainer` replaces sagan.training.Trainer. `begin` is asked once the run is open: if it returns False, nothing is
    trained, and the exit status is EXIT_NOT_STARTED.
    """
    escape_unprintable_output()
    options = _parser().parse_args(arguments)
    folder: Path = options.folder
    first = not _is_one_of_several() or os.environ["RANK"] == "0"
    console = Console(quiet=not first, markup=False, highlight=False, soft_wrap=True)
    device = options.device or "cpu"
    with _Signals() as signals, ExitStack() as journals:
        _exit_with_process(options.parent, 8.0)
        _exit_with_process(os.getppid() if _is_one_of_several() else None, 60.0)
        try:
            try:
                known = read_run(folder)
                run = _wanted(options, known)
                records = journal.current(journal.read(folder / journal.NAME)[0]) if known is not None else []
                if known is not None and run.config == known.config and records and records[-1].status is not None:
                    console.print(f"{folder}: has {_ending(folder, run.config, records[-1])}")
                    return 0
                device = run.machine["device"]
                _check(folder, run)
                training, record = _open(folder, run, known, console, journals, trainer)
            except ValueError as error:
                if options.parent is not None:
                    write_failure(folder, error, device)
                if first:
                    print(f"sagan.train: {error}", file=sys.stderr)
                return 2
            if not begin(training):
                return EXIT_NOT_STARTED
            signals.wait = True
            return _train(training, folder, record, signals, console)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                print(
                    f"sagan.train: no room is left on a disk ({error}); make room, and the same command resumes "
                    f"from the last checkpoint",
                    file=sys.stderr,
                )
                return EXIT_DISK_FULL
            if options.parent is not None and not (_is_one_of_several() and is_broken_connection(error)):
                write_failure(folder, error, device)
            raise


def _is_one_of_several() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _parser() -> argparse.ArgumentParser:
    about = "Train one SAGAN in a folder. The same command, or the folder alone, resumes it."
    parser = Parser(prog="python -m sagan.train", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="new, empty, or of a run to resume, also with more steps")
    add_shared(parser)
    add("--seed", type=int, metavar="N", help="decides all that is drawn at random (default: 0)")
    add("--parent", type=int, metavar="PID", help="the program that starts this: the run ends with it")
    return parser


class _Signals:
    """What SIGTERM and Ctrl-C do. Until `wait` is set they end the process at once; from then on they set `status`, and
    training saves a checkpoint and ends."""

    def __init__(self) -> None:
        self.wait = False
        self.status: int | None = None  # the exit status that a shell knows a signal by

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._arrived) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self.status = 128 + number
        if not self.wait:
            raise SystemExit(self.status)


def _exit_with_process(parent: int | None, seconds: float) -> None:
    """When the process `parent` has ended, this one gets SIGTERM, and is ended if it is there after so many seconds: it
    may be waiting for a GPU or a process that never answers."""

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(parent)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _wanted(options: argparse.Namespace, known: Run | None) -> Run:
    """What the command line asks for; what it leaves out is as in the folder, if that holds a run. Paths are absolute.

    That run may have fewer steps. Raises ValueError, also where it differs in other fields, naming them.
    """
    if options.preset is None and known is None:
        raise ValueError("--preset: must be given for a new run, got none; write --preset embedded")
    base = known.config if options.preset is None and known is not None else preset_of(options.preset)
    changes = changes_of(options.set)
    config = override(base, changes)
    for name in changes:
        if rule := config.no_effect(name):
            raise ValueError(f"{name}: {rule}")
    config.check_buildable()
    seed = options.seed if options.seed is not None else known.seed if known is not None else 0
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"--seed: must be a whole number in 0..{MAX_SEED}, got {seed}")
    if known is not None:
        differing = {"seed": (known.seed, seed)} if seed != known.seed else {}
        differing |= diff(known.config, config)
        if differing and not (seed == known.seed and is_prefix_of(known.config, config)):
            listed = "; ".join(f"{name} is {there} there, {here} here" for name, (there, here) in differing.items())
            raise ValueError(f"FOLDER: {options.folder} holds another run: {listed}; name another folder")
    before = known.machine if known is not None else {}
    machine: dict[str, Any] = {
        "device": options.device or before.get("device") or "cpu",
        "threads": options.threads if options.threads is not None else before.get("threads"),
    }
    for name, default in (("data_root", None), ("inception_weights", None), ("cache_dir", DEFAULT_CACHE)):
        path = getattr(options, name) or before.get(name) or default
        machine[name] = os.path.realpath(path) if path else None
    return Run(config, seed, machine)


def _check(folder: Path, run: Run) -> None:
    """Raises ValueError for mistakes that can be found without importing torch, which takes seconds."""
    check_machine(run.machine["device"], run.machine["threads"])
    for name in ("data_root", "inception_weights"):
        if run.machine[name] is not None:
            existing(f"--{name.replace('_', '-')}", Path(run.machine[name]))
    for path in (folder, Path(run.machine["cache_dir"])):
        check_folder(path)
    if not _is_one_of_several():
        return
    processes, here = os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    if processes != here:
        raise ValueError(f"--nnodes: must be 1, got {processes} processes, {here} of them here; train on one machine")
    if run.machine["device"].startswith("cuda:"):
        raise ValueError(
            f"--device: must be cuda under torchrun, one GPU per process, got {run.machine['device']}; "
            f"CUDA_VISIBLE_DEVICES selects the GPUs"
        )
    run.config.check_shared(int(processes))


def _open(
    folder: Path,
    run: Run,
    known: Run | None,
    console: Console,
    journals: ExitStack,
    trainer: Callable[..., Trainer] | None,
) -> tuple[Trainer, Journal | None]:
    """The trainer, at the run's last checkpoint if it has one, and the journal, which `journals` closes (None in all
    processes but the first).

    The folder is created only when all else is ready, so that a mistake leaves nothing. Raises ValueError.
    """
    from sagan.checkpoint import write_atomically
    from sagan.data.preparation import prepare_images
    from sagan.distributed import World, join
    from sagan.metrics.extractor import load_extractor
    from sagan.training import Trainer

    config, machine = run.config, run.machine
    device = join(machine["device"])
    set_threads(machine["threads"])
    world = World.here()
    data_root, weights = (Path(machine[name]) if machine[name] else None for name in ("data_root", "inception_weights"))
    cache_dir = Path(machine["cache_dir"])
    record = mistake = None
    if world.rank == 0:  # the other processes wait below, in broadcast
        try:
            if known is not None:
                record = journals.enter_context(Journal(folder / journal.NAME))
            if config.eval.extractor != "embedded-v2":  # a download may fail: before images are prepared for minutes
                load_extractor(config.eval.extractor, device="cpu", cache_dir=cache_dir, inception_weights=weights)
            prepare_images([config], data_root, cache_dir, console)
        except ValueError as error:
            mistake = str(error)
    if mistake := world.broadcast(mistake):
        raise ValueError(mistake)
    training = (trainer or Trainer)(
        config, run.seed, folder, device=device, data_root=data_root, cache_dir=cache_dir, inception_weights=weights
    )
    if world.rank > 0:
        return training, None
    if record is None:
        folder.mkdir(parents=True, exist_ok=True)
        record = journals.enter_context(Journal(folder / journal.NAME))
        write_atomically(folder / CONFIG, config_yaml(run))
    elif known is not None and known.config != config:
        # The run is extended: write the new config last, so that a crash leaves either the old or the new run. The
        # empty line supersedes the lines of an ended run after its last checkpoint, its outcome included.
        if any(one.status is not None for one in journal.current(journal.read(folder / journal.NAME)[0])):
            record.append(max(training.step, training.since + 1), {})
            (folder / GENERATOR).unlink(missing_ok=True)
        write_atomically(folder / CONFIG, config_yaml(run))
    names = ("data_fingerprint", "metric_fingerprint", "classes", "groups", "step")
    about = {name: getattr(training, name) for name in names}
    write_atomically(folder / PROTOCOL, json.dumps(about, indent=1).encode())
    return training, record


def _train(training: Trainer, folder: Path, record: Journal | None, stop: _Signals, console: Console) -> int:
    """Train to the end or until `stop`, writing pictures and journal; returns the exit status, equal on all ranks."""
    import torch.distributed as dist

    from sagan.pictures import write_pictures

    config = training.config
    console.print(
        f"{folder}: {config.data.name} at {config.data.resolution} px, seed {training.seed}, on {training.device}, "
        f"from step {training.step} to {config.optim.steps}"
    )
    last: Record | None = None
    with _shown(config, training.step, console) as show:
        events = training.run(lambda: stop.status is not None)
        for event in events:  # in the first process only
            assert record is not None
            try:
                files = [CONFIG, PROTOCOL] if event.step == 0 else write_pictures(folder, event.step, event.images)
                if event.outcome is not None and (folder / GENERATOR).exists():
                    files.append(GENERATOR)
                last = record.append(event.step, event.metrics, files, event.outcome)
            except OSError as error:
                events.throw(error)  # so that no checkpoint is saved: it would count this event as recorded
            else:
                show(last)
    status = 0 if last is not None and last.status is not None else stop.status or 0
    status = training.world.broadcast(status)
    if status == 0 and last is not None:
        console.print(_ending(folder, config, last))
    elif status:
        console.print(f"stopped and saved at step {training.step}; the same command resumes it")
    if training.world.size > 1:
        dist.destroy_process_group()
    return status


@contextmanager
def _shown(config: Config, step: int, console: Console) -> Iterator[Callable[[Record], None]]:
    """What shows a record: a progress bar on a terminal, lines elsewhere."""
    scores: dict[str, float] = {}
    printed_at = -_QUIET_SECONDS
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=config.optim.steps, completed=step, metrics="")

        def show(record: Record) -> None:
            nonlocal printed_at
            new = {name: record.metrics[name] for name in _SCORES if name in record.metrics}
            scores.update(new)
            progress.update(task, completed=record.step, metrics=_in_words(config, record.metrics | scores))
            is_due = bool(new) or time.monotonic() - printed_at > _QUIET_SECONDS
            if not console.is_terminal and record.step and is_due:
                printed_at = time.monotonic()
                console.print(f"step {record.step} of {config.optim.steps}: {_in_words(config, record.metrics)}")

        yield show


_SCORES = ("fid", "relation_error")


def _in_words(config: Config, metrics: dict[str, float]) -> str:
    # Only features of the real Inception make an FID.
    distance = "FID" if config.eval.extractor == "inception" else f"FD {config.eval.extractor}"
    names = {
        "loss_g": "loss G",
        "loss_d": "loss D",
        "fid": distance,
        "relation_error": "relation error",
        "images_per_sec": "images/s",
    }
    return ", ".join(f"{word} {metrics[name]:.4g}" for name, word in names.items() if name in metrics)


def _ending(folder: Path, config: Config, last: Record) -> str:
    scores = {name: last.metrics[name] for name in _SCORES if name in last.metrics}
    message = f"{last.status} at step {last.step}" + (f": {_in_words(config, scores)}" if scores else "")
    return message + (f"; {folder / GENERATOR}" if GENERATOR in last.files else "")


if __name__ == "__main__":
    sys.exit(main())
