"""Runs studies one after another, including searches, and prints a summary."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ablations.attempts import all_attempts
from ablations.disk import is_full_disk
from ablations.display import row_texts, verdict_table
from ablations.launcher import Launcher, Options
from ablations.machine import WorkerPool
from ablations.plan import BEST, Cell, Study, show
from ablations.preflight import DEFAULT_STORE, absolute, sqlite_path, without_password
from ablations.queue import CellState
from ablations.results import Result, label
from ablations.search import Trials
from ablations.slurm import open_executor, submit
from ablations.storage import UNREACHABLE_ERRORS, exclusive, probe
from ablations.table import answer
from ablations.tracking.store import Store, StoreUnreachable
from ablations.trainers import Interrupt
from ablations.verdicts import CellScores, verdict_rows, wanted


def run_studies(
    studies: Sequence[tuple[Study, WorkerPool]],
    options: Options,
    console: Console,
    trainer: Callable[..., Any] | None = None,
) -> int:
    """Exit status: 0 every cell has a result; 1 some cell failed; 130 or 143 interrupted, with everything saved. With
    --worker-only: 0 no cell waits any more.

    A failed cell stops neither its study nor the next one; an interrupt stops all. `trainer` replaces
    sagan.training.Trainer. Raises ValueError, naming the option, where queue or store cannot be opened; nothing is
    written then.
    """
    store = _open(studies, options)
    worst, summaries, links, others = 0, list[str](), list[str](), set[str]()
    with Interrupt(options.until_seconds) as interrupt:
        for number, (study, pool) in enumerate(studies, 1):
            if len(studies) > 1:
                console.out(f"Study {number} of {len(studies)}: {study.name}")
            try:
                launcher = Launcher(study, pool, options, store, interrupt, console, trainer)
                _run(launcher, console)
                states, results = list(launcher.states.values()), launcher.results()
                summary = _summary(states, results)
                good = {"done", "running"} if options.worker_only else {"done"}
                if interrupt.status == 0:  # the time is up, as it was asked for
                    good |= {"new", "waiting", "running"}
                worst = max(worst, int(any(state.state not in good for state in states)))
                recorded = None if options.worker_only or store.is_unreachable else launcher.cell_scores()
                others |= launcher.trained_by_others()
            except Exception as error:
                if (reason := _outage(error, options)) is None:
                    raise
                console.out(f"{study.name}: not run to its end, because {reason}. The same command goes on from here.")
                worst = 1
                break
            console.out(summary)
            failed = [state for state in states if state.state == "failed"]
            for state in failed:
                console.out(f"{state.cell.name} failed: {state.error}")
            if failed:
                console.out(
                    "--retry-failed runs them again. Each has a traceback.txt in MLflow, or a log.txt in its folder."
                )
            if recorded is not None:
                _show_verdicts(launcher, recorded, console)
            summaries.append(f"{study.name}: {summary}")
            links.append(launcher.link)
            if interrupt.status is not None:
                break
    if len(studies) > 1:
        console.out("\n".join(summaries))
    folders = [options.runs / study.name for study, _ in studies]
    unsent = {attempt.cell.key for folder in folders for attempt in all_attempts(folder) if attempt.has_unsent} - others
    if unsent:
        console.out(
            f"{len(unsent)} cells are not fully uploaded to MLflow; their data is in {options.runs}. "
            f"Run the same command again to upload it; no finished cell is trained again."
        )
        worst = 1
    if interrupt.status is not None:
        command = f"same command{' without --rerun' if options.rerun else ''}"
        console.out(f"{'The time is up' if interrupt.status == 0 else 'Stopped'}. The {command} goes on from here.")
        return interrupt.status or worst
    if not options.worker_only:
        console.out(f"Build the report: python -m reports.build{_unless_default(options, '--tracking-uri')}")
        if not options.tracking_uri.startswith("http"):
            console.out(f"Look at the runs: mlflow ui{_unless_default(options, '--backend-store-uri')}, then")
        console.out("\n".join(links))
    return worst


def submit_studies(
    studies: Sequence[tuple[Study, WorkerPool]],
    options: Options,
    arguments: Sequence[str],
    on_gpu: bool,
    console: Console,
) -> int:
    """Makes stores and queues, and submits workers to Slurm that take the arguments of this command; does not wait."""
    logs = options.runs / "slurm"
    executor = open_executor(logs, on_gpu)
    store = _open(studies, options)
    waiting = 0
    with Interrupt() as interrupt:
        for study, pool in studies:
            launcher = Launcher(study, pool, options, store, interrupt, console)
            cells = study.cells(options.only)
            launcher.set_aside([cell for cell in study.cells(options.rerun) if cell in cells])
            if study.adaptive:
                launcher.register_seeds()
                cells = _wanted(launcher)
            waiting += launcher.enqueue(cells)
    if not waiting:
        console.out("Nothing to run.")
        return 0
    job = "--launcher local --worker-only --workers 1".split()
    command = (sys.executable, "-m", "ablations.run", *arguments, *job)
    jobs = submit(executor, command, min(waiting, max(pool.workers for _, pool in studies)))
    console.out(
        f"{waiting} cells wait; submitted {len(jobs)} workers: {', '.join(job.job_id for job in jobs)}. Logs: {logs}"
    )
    return 0


def _open(studies: Sequence[tuple[Study, WorkerPool]], options: Options) -> Store:
    try:
        probe(options.storage)
    except ValueError as error:
        raise ValueError(f"--storage: {error}") from None
    url = options.storage
    # Hosts that make the tables of one new store at once would fail. (A SQLite file has a lock of its own.)
    with exclusive(url, "store") if sqlite_path(url) is None else contextlib.nullcontext():
        try:
            store = Store(options.tracking_uri)
            for study, _ in studies:
                store.check_experiment(study)
        except ValueError as error:
            raise ValueError(f"--tracking-uri: {error}") from None
    for study, _ in studies:
        store.check_images(study, options.fingerprints)
        store.check_seeds(study)
    return store


def _unless_default(options: Options, option: str) -> str:
    """The option that names this store to another command, where that would look elsewhere."""
    is_default = options.tracking_uri == absolute(DEFAULT_STORE)
    return "" if is_default else f" {option} {without_password(options.tracking_uri)}"


def _outage(error: Exception, options: Options) -> str | None:
    """Why the launch cannot continue until the user acts (disk, database, store); None for other errors."""
    if is_full_disk(error):
        files = (sqlite_path(url) for url in (options.storage, options.tracking_uri))
        folders = [options.runs, *(file.parent for file in files if file is not None)]
        fullest = min(filter(Path.exists, folders), key=lambda folder: shutil.disk_usage(folder).free)
        return f"there is no room left on the disk of {fullest}; make some"
    if isinstance(error, UNREACHABLE_ERRORS):
        return f"the queue's database does not answer ({str(error.__cause__ or error).splitlines()[0][:300]})"
    return str(error) if isinstance(error, StoreUnreachable) else None


def _run(launcher: Launcher, console: Console) -> None:
    study, only = launcher.study, launcher.options.only
    # The best variant needs all the trials of its search; the baseline alone needs none.
    if study.search is not None and any(c.variant != study.baseline for c in study.with_all_trials().cells(only)):
        study = _search(launcher, console)
    if launcher.have_all_ended:  # not interrupted, and workers can run
        trials = study.search.proposed if study.search else {}
        cells = [cell for cell in study.cells(only) if cell.variant not in trials]
        again = {cell.key for cell in study.cells(launcher.options.rerun)}
        launcher.set_aside([cell for cell in cells if cell.key in again])
        if study.adaptive:
            _run_looks(launcher, console)
        else:
            launcher.run(cells)
    if launcher.have_all_ended and not launcher.has_run:
        console.out("Nothing to run.")


def _run_looks(launcher: Launcher, console: Console) -> None:
    """Runs the cells that the next look needs until every comparison is decided or stopped for futility, or the most
    seeds of the study or the launch have run. Other launchers and hosts that share the study do the same: a look
    is a function of the recorded cells."""
    study = launcher.study
    launcher.register_seeds()
    launcher.run([])  # uploads what a killed launcher left
    while launcher.have_all_ended and (cells := _wanted(launcher)):
        if all(cell.key in launcher.states for cell in cells):  # ended, but the store has lost the record
            break
        seeds = study.seeds.index(cells[-1].seed) + 1
        counts = Counter(cell.variant for cell in cells)
        listed = ", ".join(f"{count} of {variant}" for variant, count in counts.items())
        console.out(f"Next look at {seeds} seeds; cells to train: {listed}.")
        launcher.run(cells)
    if launcher.have_all_ended:
        recorded = launcher.cell_scores()
        launcher.refresh_states([cell for cell in study.cells(launcher.options.only) if cell.key in recorded])


def _wanted(launcher: Launcher) -> list[Cell]:
    """The cells that the next look needs and that were asked for."""
    study, options = launcher.study, launcher.options
    asked = {cell.key for cell in study.cells(options.only)}
    return [cell for cell in wanted(study, launcher.cell_scores(), options.most) if cell.key in asked]


def _show_verdicts(launcher: Launcher, recorded: CellScores, console: Console) -> None:
    """The table of verdicts, and the answer in words."""
    study = launcher.study
    if console.is_terminal:
        console.print(verdict_table(study, verdict_rows(study, recorded)))
    else:
        for row in verdict_rows(study, recorded):
            name, n, mean, *rest = row_texts(row, study.baseline)
            console.out(
                ", ".join(filter(None, [f"{name}: n = {n}", mean and f"{label(study, study.metric)} {mean}", *rest]))
            )
    console.out(answer(study, launcher.results(), launcher.failed))


def _search(launcher: Launcher, console: Console) -> Study:
    """Runs the trials in rounds of as many as there are workers; returns the study with all of them and the best."""
    options = launcher.options
    with Trials(options.storage, launcher.study) as trials:

        def run(names: Sequence[str]) -> None:
            launcher.publish(trials.study(), trials.report())
            states = launcher.run([cell for cell in trials.study().cells() if cell.variant in names])
            trials.record(launcher.results(), {state.cell.variant for state in states if state.state == "failed"})
            launcher.publish(trials.study(), trials.report())

        if options.retry_failed:
            trials.retry_failed()
        run(trials.names())  # what earlier launches left without a result
        while launcher.have_all_ended and (names := trials.propose(launcher.pool.workers)):
            console.out(f"Search: {', '.join(names)}")
            run(names)
        study = trials.study()
    best = next((variant for variant in study.variants() if variant.name == BEST), None)
    if best is not None:
        console.out(f"Search: best is {', '.join(f'{name}={show(value)}' for name, value in best.changes.items())}")
    elif launcher.have_all_ended:
        console.out("Search: no trial has a value, so there is no best one")
    return study


def _summary(states: Sequence[CellState], results: Mapping[str, Result]) -> str:
    """ "12 cells: 11 finished, 1 collapsed; 3 shared with attention_position."."""
    own = {state.cell.key: results.get(state.cell.key) for state in states}
    counts = Counter(result.outcome if (result := own[state.cell.key]) else state.state for state in states)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    shared = Counter(result.shared_study for result in own.values() if result and result.shared_study)
    copies = ", ".join(f"{count} shared with {study}" for study, count in shared.items())
    return f"{len(states)} cells: {listed}{'; ' if copies else ''}{copies}."
