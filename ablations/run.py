"""The command line: `python -m ablations.run studies/attention_position.yaml`.

Exit status: 0 every cell has a result; 1 some cell, or the store, queue or disk failed; 2 bad input; 130
interrupted, 143 terminated (state saved).
Bad input is reported before anything but runs/cache is written, and mistakes in options and study files before torch,
MLflow or Optuna is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ablations.plan import Cell, Study
from ablations.preflight import (
    DEFAULT_STORE,
    absolute,
    check_shared,
    check_storage,
    check_store,
    tracking_uri,
    without_password,
)
from sagan.config import Config
from sagan.options import MAX_SEED, changes_of, check_folder, check_machine, escape_unprintable_output, existing

T = TypeVar("T")


def main(arguments: Sequence[str], trainer: Callable[..., Any] | None = None) -> int:
    """`trainer` is called in the place of sagan.training.Trainer, in processes that import it again."""
    escape_unprintable_output()
    options = _parser().parse_intermixed_args(arguments)
    try:
        return _start(_choose(_studies(options), options), options, trainer, arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the studies are run, or Ctrl-C given twice
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ablations.run",
        description="Train every cell of each study. The same command, given again, finishes what is left.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("studies", nargs="+", type=Path, metavar="STUDY.yaml")
    add("--preset", help="scale, in place of the study's own: embedded, cifar10, imagenette64, ...")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field in every variant; repeatable")
    add("--seeds", metavar="0,1,2", help="in place of the study's own, adaptive or not")
    most = "adaptive seeds: stop at the look with N per variant; later launches continue"
    add("--most", type=int, metavar="N", help=most)
    add("--until", metavar="TIME", help="save and stop after 45min, 2h or 90s; the same command resumes")
    add("--only", default="*", metavar="GLOB", help="cells whose variant, or variant/seedK, matches")
    add("--workers", default="auto", metavar="N", help="processes; auto: one per core, or one per GPU")
    add("--threads", type=int, metavar="N", help="CPU threads per worker (default: its share; at most OMP_NUM_THREADS)")
    add("--device", default="cpu", help="cpu, cuda (all GPUs) or cuda:N")
    add("--gpus-per-cell", type=int, default=1, metavar="N", help="train each cell on N GPUs, or in N CPU processes")
    add("--data-root", type=Path, help="where data sets are, or are downloaded to (default: data)")
    add("--inception-weights", type=Path, metavar="FILE", help="for machines without a network")
    add("--storage", default="sqlite:///optuna.db", metavar="URL", help="the queue (default %(default)s)")
    add("--tracking-uri", metavar="URI", help=f"the MLflow store (default: MLFLOW_TRACKING_URI, else {DEFAULT_STORE})")
    add("--worker-only", action="store_true", help="train until no cell waits, then exit; show no verdicts")
    add("--launcher", choices=["local", "slurm"], default="local", help="slurm: submit N jobs, each with --worker-only")
    add("--retry-failed", action="store_true", help="run cells again that failed before")
    add("--rerun", default="", metavar="GLOB", help="cells, as in --only, that are trained again, though finished")
    add("--no-reuse", action="store_true", help="do not reuse results of other studies, or shorter runs")
    add("--dry-run", action="store_true", help="print the plan and its cost; write nothing")
    add("--calibrate", action="store_true", help="with --dry-run: measure time and memory here, for a minute or two")
    return parser


def _studies(options: argparse.Namespace) -> list[Study]:
    """All studies that were named, checked. Raises StudyError with the mistakes of all files at once."""
    from ablations.document import StudyError  # not for --help: these import pydantic and ruamel.yaml
    from ablations.study import read_study

    changes = changes_of(options.set)
    seeds = None if options.seeds is None else _seeds(options.seeds)
    studies: dict[str, Study] = {}
    messages: list[str] = []
    for path in options.studies:
        try:
            study = read_study(path, options.preset, changes)
        except StudyError as error:
            messages += error.messages
            continue
        if seeds is not None:
            if study.search is not None and study.search.seed in seeds:
                messages.append(f"--seeds: {study.search.seed} trains the trials of {path}; confirm with other seeds")
            study = study.at_seeds(seeds)
        if options.most is not None and study.adaptive is None:
            lists = f"{path} has a list" if seeds is None else "--seeds is a list"
            messages.append(f"--most: needs adaptive seeds, but {lists}; remove one of them")
        elif options.most is not None and study.adaptive:
            fewest, largest = study.adaptive.first, study.adaptive.most
            if not fewest <= options.most <= largest:
                rule = f"must be in {fewest}..{largest}, as {path} has it in seeds, got {options.most}"
                messages.append(f"--most: {rule}; leave it out for {largest}")
        if study.name in studies:
            first = studies[study.name].path
            messages.append(f"{path}: name: {study.name!r} is the name of {first} too; rename one, or give it once")
        studies[study.name] = study
    if messages:
        raise StudyError(list(dict.fromkeys(messages)))  # what is wrong on the command line is wrong in every file
    return list(studies.values())


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"--seeds: must be different whole numbers, got {text!r}; write --seeds 0,1,2")
    if (largest := max(map(int, parts))) > MAX_SEED:
        raise ValueError(f"--seeds: must be {MAX_SEED} at most, got {largest}")
    return [int(part) for part in parts]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?) ?(s|min|h)", text)
    if match is None or not (seconds := float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]]):
        raise ValueError(f"must be a time above 0, got {text!r}; write 45min, 2h or 90s")
    return seconds


def _choose(studies: list[Study], options: argparse.Namespace) -> list[tuple[Study, list[Cell]]]:
    """The studies that have cells to run, with these; the others are named. Trials of a search are counted ahead.

    Raises ValueError where there is none, or --rerun names no cell that can be trained again.
    """
    only, rerun = options.only, options.rerun
    chosen = [(study, study.with_all_trials().cells(only)) for study in studies]
    skipped = []
    for study, cells in chosen:
        if not cells:
            shown = [
                f"{v.name} ({v.build_error})" if v.build_error else v.name for v in study.with_all_trials().variants()
            ]
            reason = f"--only: no cell matches {only!r}" if only != "*" else "no variant can be built"
            skipped.append(f"{study.path}: {reason}; variants are {', '.join(shown)}")
    if len(skipped) == len(chosen):
        raise ValueError("\n".join(skipped))
    for reason in skipped:
        print(f"Skipped: {reason}")
    chosen = [(study, cells) for study, cells in chosen if cells]
    if rerun and options.worker_only:
        raise ValueError("--rerun: must go without --worker-only, since each worker would do it; give it to one launch")
    found = [cell for study, cells in chosen for cell in study.cells(rerun) if cell in cells]
    if rerun and not found and all(study.search is None for study, _ in chosen):
        names = [cell.name for _, cells in chosen for cell in cells]
        raise ValueError(f"--rerun: no cell matches {rerun!r}; cells are {', '.join(names[:20])}")
    return chosen


def _start(
    chosen: list[tuple[Study, list[Cell]]],
    options: argparse.Namespace,
    trainer: Callable[..., Any] | None,
    arguments: Sequence[str],
) -> int:
    from rich.console import Console

    from ablations.machine import choose_worker_pool, find_devices

    if options.calibrate and not options.dry_run:
        raise ValueError("--calibrate: must go with --dry-run, got it alone; add --dry-run, or leave it out to train")
    check_machine(options.device, options.threads)
    runs = Path("runs").resolve()
    store, options.tracking_uri = tracking_uri(options.tracking_uri)
    _check_option("--storage", partial(check_storage, will_write=not options.dry_run), options.storage)
    _check_option(store, partial(check_store, will_write=not options.dry_run), options.tracking_uri)
    storage, uri = absolute(options.storage), absolute(options.tracking_uri)
    if storage == uri:
        got = f"got {without_password(options.storage)!r} for both"
        raise ValueError(f"--storage: must be another database than --tracking-uri, {got}")
    if not options.dry_run:
        check_folder(runs)
    uses_slurm = options.launcher == "slurm" and not options.dry_run
    search = next((study for study, _ in chosen if study.search is not None), None)
    if search is not None and (uses_slurm or options.worker_only):
        raise ValueError(
            f"{'--launcher slurm' if uses_slurm else '--worker-only'}: must be given studies with factors, got the "
            f"search {search.path}; leave it out: every host's launcher proposes and runs trials of a search that "
            f"they share"
        )
    if uses_slurm:
        _check_option("--storage", check_shared, options.storage)
        _check_option(store, check_shared, options.tracking_uri)
    data_root = existing("--data-root", options.data_root)
    inception_weights = existing("--inception-weights", options.inception_weights)
    until = None if options.until is None else _check_option("--until", _seconds, options.until)
    if options.workers != "auto" and not (options.workers.isdecimal() and int(options.workers) > 0):
        raise ValueError(
            f"--workers: must be a whole number above 0 or auto, got {options.workers!r}; write --workers 4"
        )
    asked = None if options.workers == "auto" else int(options.workers)
    if uses_slurm and asked is None:
        raise ValueError("--workers: must be a number of jobs with --launcher slurm, got 'auto'; write --workers 8")
    devices = ("cpu",) if uses_slurm else _check_option("--device", find_devices, options.device)
    console = Console(highlight=False)
    configs = [cell.config for _, cells in chosen for cell in cells]
    devices = _gpu_groups(options, configs, devices)
    from sagan.data import num_classes

    for data in dict.fromkeys(config.data for config in configs):
        num_classes(data, data_root)  # raises ValueError for a missing folder; nothing is downloaded or decoded
    fingerprints: dict[str, str] = {}
    if not uses_slurm and (not options.dry_run or options.calibrate):  # the first job prepares them
        from sagan.data.preparation import prepare_images

        # Each extractor is opened once: one process downloads its weights, and one that is unavailable is reported now.
        for name in sorted({config.eval.extractor for config in configs} - {"embedded-v2"}):
            from sagan.metrics.extractor import load_extractor

            load_extractor(name, device="cpu", cache_dir=runs / "cache", inception_weights=inception_weights)
        fingerprints = prepare_images(configs, data_root, runs / "cache", console)
    pools = [
        choose_worker_pool(asked, [cell.config for cell in cells], devices, data_root, options.threads)
        for _, cells in chosen
    ]
    for note in dict.fromkeys(pool.note for pool in pools if pool.note):
        console.out(note)
    if options.dry_run:
        from ablations.calibration import calibrate
        from ablations.dry_run import show_plans

        calibration = None
        if options.calibrate:
            all_cells = [cell for _, cells in chosen for cell in cells]
            largest = max(pools, key=lambda pool: pool.workers)
            calibration = calibrate(all_cells, largest, console, data_root, inception_weights, runs / "cache")
        planned = [(study, cells, pool) for (study, cells), pool in zip(chosen, pools, strict=True)]
        show_plans(planned, not options.no_reuse, uri, console, calibration, data_root, options.most)
        return 0
    if not uses_slurm and options.gpus_per_cell == 1:
        from ablations import trainers

        with contextlib.suppress(OSError):  # raised again where a process is started
            trainers.start_server(pools[0].threads)  # it gets ready while this process opens queue and store
    from ablations.launch import run_studies, submit_studies
    from ablations.launcher import Options

    asked_for = Options(
        only=options.only,
        storage=storage,
        tracking_uri=uri,
        runs=runs,
        data_root=data_root,
        inception_weights=inception_weights,
        retry_failed=options.retry_failed,
        reuse=not options.no_reuse,
        worker_only=options.worker_only,
        fingerprints=fingerprints,
        processes=options.gpus_per_cell,
        rerun=options.rerun,
        most=options.most,
        until_seconds=until,
    )
    studies = [(study, pool) for (study, _), pool in zip(chosen, pools, strict=True)]
    if uses_slurm:
        # Cells that are run again are queued here, once, and not again by each job.
        words = [word for word in arguments if word != "--retry-failed"]
        words += ["--rerun=", "--no-reuse"] if options.rerun else []
        return submit_studies(studies, asked_for, words, options.device != "cpu", console)
    return run_studies(studies, asked_for, console, trainer)


def _gpu_groups(options: argparse.Namespace, configs: Sequence[Config], devices: Sequence[str]) -> tuple[str, ...]:
    """The GPUs in groups of --gpus-per-cell: ("0,1", "2,3"). Raises ValueError where they cannot share a batch."""
    count = options.gpus_per_cell
    if count == 1:
        return tuple(devices)
    if count < 1:
        raise ValueError(f"--gpus-per-cell: must be 1 or more, got {count}; leave it out")
    if options.launcher != "local":
        raise ValueError(f"--launcher: must be local with --gpus-per-cell {count}, got slurm; leave one of them out")
    if options.calibrate:
        raise ValueError(f"--calibrate: must go without --gpus-per-cell, since it measures one process, got {count}")
    for config in configs:
        config.check_shared(count)
    if options.device == "cpu":
        return ("",)
    if options.device != "cuda":
        raise ValueError(
            f"--device: must be cuda with --gpus-per-cell {count}, a card for each process, got {options.device}; "
            f"CUDA_VISIBLE_DEVICES chooses among them"
        )
    if count > len(devices):
        raise ValueError(f"--gpus-per-cell: must be at most {len(devices)}, the number of GPUs here, got {count}")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    cards = names if len(names) == len(devices) and all(names) else [str(index) for index in range(len(devices))]
    return tuple(",".join(cards[first : first + count]) for first in range(0, len(cards) - count + 1, count))


def _check_option(option: str, check: Callable[[str], T], value: str) -> T:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
