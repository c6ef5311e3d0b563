"""Runs studies one after another: each a session, whose cells go to workers until all have ended."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ablations.crew import Interrupt, Program
from ablations.plan import BEST, Study, show
from ablations.preflight import sqlite_path
from ablations.queue import CellQueue, CellState
from ablations.room import fullest, is_full_disk
from ablations.search import Trials
from ablations.session import Order, Session
from ablations.slurm import open_executor, submit
from ablations.spool import held_unsent
from ablations.storage import AWAY, exclusive, probe
from ablations.tracking import Result, Store, StoreAway

WORKER: Program = (sys.executable, "-m", "ablations.worker")


def run_studies(orders: Sequence[Order], console: Console, program: Program = WORKER) -> int:
    """Exit status: 0 every cell has a result; 1 some cell failed; 130 or 143 interrupted, with everything saved. Where
    workers are all that is asked for: 0 no cell waits any more.

    A failed cell stops neither its study nor the next one; an interrupt stops all. The orders name one storage and one
    store. Raises ValueError, naming the option, where one of them cannot be opened; nothing is written then.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    store = _open(orders)
    worst, summaries = 0, []
    with Interrupt() as interrupt:
        for number, order in enumerate(orders, 1):
            if len(orders) > 1:
                say(f"Study {number} of {len(orders)}: {order.study.name}")
            try:
                with Session(order, store, interrupt, console, program) as session:
                    _run(session, console)
                    summary = _summary(session)
                    good = {"done", "running"} if order.worker_only else {"done"}
                    worst = max(worst, int(any(state.state not in good for state in session.states.values())))
            except Exception as error:
                if (reason := _passing_obstacle(error, order)) is None:
                    raise
                say(f"{order.study.name}: not run to its end, because {reason}. The same command goes on from here.")
                worst = 1
                break
            say(summary)
            _name_failures(list(session.states.values()), console)
            summaries.append(f"{order.study.name}: {summary}")
            if interrupt.status is not None:
                break
    if len(orders) > 1:
        say("\n".join(summaries))
    if unsent := sum(1 for order in orders for _ in held_unsent(order.runs / order.study.name)):
        say(
            f"The tracking store lacks something of {unsent} cells, which is safe in {orders[0].runs}. "
            f"When it takes it, the same command sends it, and trains nothing that is trained."
        )
        worst = 1
    if interrupt.status is not None:
        say("Stopped. The same command goes on from here.")
        return interrupt.status
    if not orders[0].worker_only:
        say("Look at the runs: mlflow ui      Build the report: python -m reports.build")
    return worst


def submit_studies(orders: Sequence[Order], arguments: Sequence[str], on_gpu: bool, console: Console) -> int:
    """Makes stores and queues, and submits workers to Slurm that take the arguments of this command; does not wait."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    logs = orders[0].runs / "slurm"
    executor = open_executor(logs, on_gpu)
    store = _open(orders)
    waiting = 0
    with Interrupt() as interrupt:
        for order in orders:
            session = Session(order, store, interrupt, console, WORKER)
            cells = order.study.cells(order.only)
            with contextlib.closing(CellQueue(order.storage, order.study.name, cells)) as queue:
                waiting += session.prepare(queue)
    if not waiting:
        say("Nothing to run.")
        return 0
    job = "--launcher local --worker-only --workers 1".split()
    command = (sys.executable, "-m", "ablations.run", *arguments, *job)
    jobs = submit(executor, command, min(waiting, max(order.workers for order in orders)))
    say(f"{waiting} cells wait; submitted {len(jobs)} workers: {', '.join(job.job_id for job in jobs)}. Logs: {logs}")
    return 0


def _open(orders: Sequence[Order]) -> Store:
    try:
        probe(orders[0].storage)
    except ValueError as error:
        raise ValueError(f"--storage: {error}") from None
    url = orders[0].storage
    # Hosts that make the tables of one new store at once would fail. (A SQLite file has a lock of its own.)
    with exclusive(url, "store") if sqlite_path(url) is None else contextlib.nullcontext():
        try:
            store = Store(orders[0].tracking_uri)
            for order in orders:
                store.check_experiment(order.study)
        except ValueError as error:
            raise ValueError(f"--tracking-uri: {error}") from None
    for order in orders:
        store.check_images(order.study, order.fingerprints)
    return store


def _passing_obstacle(error: Exception, order: Order) -> str | None:
    """What keeps the launch from going on for now; None for other errors."""
    if is_full_disk(error):
        files = (sqlite_path(url) for url in (order.storage, order.tracking_uri))
        folders = [order.runs, *(file.parent for file in files if file is not None)]
        return f"there is no room left on the disk of {fullest(filter(Path.exists, folders))}; make some"
    if isinstance(error, AWAY):
        return f"the queue's database does not answer ({str(error.__cause__ or error).splitlines()[0][:300]})"
    return str(error) if isinstance(error, StoreAway) else None


def _run(session: Session, console: Console) -> None:
    study, only = session.order.study, session.order.only
    # The best variant needs all the trials of its search; the baseline alone needs none.
    if study.search is not None and any(c.variant != study.baseline for c in study.outline().cells(only)):
        study = _search(session, console)
    if session.is_settled:  # not interrupted, and workers can run
        trials = study.search.proposed if study.search else {}
        session.run([cell for cell in study.cells(only) if cell.variant not in trials])
    if session.is_settled and not session.has_run:
        console.print("Nothing to run.", highlight=False)


def _search(session: Session, console: Console) -> Study:
    """Runs the trials in rounds of as many as there are workers; returns the study with all of them and the best."""
    order = session.order
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with Trials(order.storage, order.study) as trials:
        if order.retry_failed:
            trials.retry_failed()
        _run_trials(session, trials, trials.names())  # what earlier launches left without a result
        while session.is_settled and (names := trials.propose(order.workers)):
            say(f"Search: {', '.join(names)}")
            _run_trials(session, trials, names)
        study = trials.study()
    best = next((variant for variant in study.variants() if variant.name == BEST), None)
    if best is not None:
        say(f"Search: best is {', '.join(f'{name}={show(value)}' for name, value in best.changes.items())}")
    elif session.is_settled:
        say("Search: no trial has a value, so there is no best one")
    return study


def _run_trials(session: Session, trials: Trials, names: Sequence[str]) -> None:
    _publish(session, trials)
    states = session.run([cell for cell in trials.study().cells() if cell.variant in names])
    trials.record(session.results(), {state.cell.variant for state in states if state.state == "failed"})
    _publish(session, trials)


def _publish(session: Session, trials: Trials) -> None:
    session.publish({"plan.json": trials.study().plan(), "search.json": trials.report()})


def _summary(session: Session) -> str:
    """ "12 cells: 11 finished, 1 collapsed; 3 shared with attention_position."."""
    states, results = list(session.states.values()), session.results()
    counts = Counter(_fate(state, results) for state in states)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    shared = Counter(
        study for state in states if state.cell.key in results and (study := results[state.cell.key].shared_study)
    )
    copies = ", ".join(f"{count} shared with {study}" for study, count in shared.items())
    return f"{len(states)} cells: {listed}{'; ' if copies else ''}{copies}."


def _fate(state: CellState, results: Mapping[str, Result]) -> str:
    return results[state.cell.key].outcome if state.cell.key in results else state.state


def _name_failures(states: Sequence[CellState], console: Console) -> None:
    failed = [state for state in states if state.state == "failed"]
    for state in failed:
        console.print(f"{state.cell.name} failed: {state.error}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        console.print("--retry-failed runs them again; their tracebacks are in MLflow.", highlight=False)
