"""Prints the plan of a study and its cost; nothing is written."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ablations.calibration import Calibration
from ablations.display import duration
from ablations.machine import Team
from ablations.plan import Cell, Study, show
from ablations.preflight import sqlite_path
from reports import statistics
from sagan.config import diff, flatten
from sagan.cost import count
from sagan.data import num_classes

if TYPE_CHECKING:
    from ablations.tracking import Store


def show_plan(
    study: Study,
    cells: Sequence[Cell],
    shared: int,
    team: Team,
    tracking_uri: str,
    console: Console,
    calibration: Calibration | None = None,
    data_root: Path | None = None,
) -> float:
    """Prints what each variant changes and costs, then the cells, and about how long they take on this machine.

    Returns that time in seconds. The first `shared` of the cells take none, because another study has trained them. The
    trials of a search are not known ahead: give its outline.
    """
    path = sqlite_path(tracking_uri)
    store = None
    if path is None or path.exists():  # opening a store would make its file
        from ablations.tracking import Store  # imports MLflow

        try:
            store = Store(tracking_uri, read_only=True)
            store.check_experiment(study)
        except ValueError as error:
            raise ValueError(f"--tracking-uri: {error}") from None
    variants = study.variants()
    baseline = next(variant for variant in variants if variant.name == study.baseline)
    costs = {v.name: count(v.config, num_classes(v.config.data, data_root)) for v in variants if not v.build_error}
    planned = {cell.variant: cell.config.optim for cell in cells}
    start = 0.0
    if calibration is not None:
        start = calibration.start
        seconds = {cell.variant: calibration.cell_seconds(cell.config) for cell in cells}
    else:
        rates = _measured_rates(study, store)
        missing = planned.keys() - rates.keys()
        flops = _flops_per_second(team.places[0], team.threads) if missing else 0.0
        seconds = {
            name: optim.steps * costs[name].flops_per_step / flops
            if name in missing
            else optim.steps * optim.batch_size * optim.d_steps / rates[name]
            for name, optim in planned.items()
        }
    total = start + makespan([seconds[cell.variant] for cell in cells[shared:]], team.workers)

    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{study.name}: {study.question}\nprotocol: {study.protocol}\n")
    if study.search is not None:
        say(f"{study.search}, counted at the values of {baseline.name}")
        variants = [baseline]
    table = Table()
    for title in ("variant", "G params", "D params", "GFLOPs/image", "memory MiB", "per cell"):
        table.add_column(title, justify="left" if title == "variant" else "right", no_wrap=True)
    for variant in variants:
        if variant is not baseline:
            changes = [
                f"{k} {show(old)} -> {show(new)}" for k, (old, new) in diff(baseline.config, variant.config).items()
            ]
            say(f"{variant.name} changes against {baseline.name}: {', '.join(changes)}")
        if variant.build_error is not None:
            table.add_row(variant.name, variant.build_error)
            continue
        cost = costs[variant.name]
        numbers = (f"{cost.num_params_g:,}", f"{cost.num_params_d:,}", f"{cost.flops_per_image / 1e9:.3g}")
        each = duration(seconds[variant.name]) if variant.name in seconds else ""
        table.add_row(variant.name, *numbers, f"{cost.memory_mib:,.0f}", each)
    console.print(table)

    names = ", ".join(cell.name for cell in cells)
    say(f"{len(cells)} cells{f', the first {shared} shared with studies above' if shared else ''}: {names}")
    if calibration is not None:
        gib = max(speed.memory_mib for speed in calibration.speeds.values()) / 1024
        on_cpu = team.places == ("cpu",)
        memory = f"memory each, {gib * team.workers:.1f} GiB in all" if on_cpu else "GPU memory each"
        say(f"About {duration(total)} on {team}, {gib:.1f} GiB of {memory}: measured just now.")
    else:
        basis = "at the speed of one large convolution; at small widths expect several times that"
        basis = basis if missing else "at the speed of earlier runs in the store"
        say(f"About {duration(total)} of training on {team}, {basis}. --calibrate does better: it measures.")
    say(_power(study, cells, store))
    return total


def _power(study: Study, cells: Sequence[Cell], store: Store | None) -> str:
    """The smallest difference that the cells show with 80 % power, and the source of the noise that this assumes."""
    counts = Counter(cell.variant for cell in cells)
    sizes = {variant: n for variant, n in counts.items() if n > 1}  # a search's trials have one seed
    pairs = [pair for pair in study.pairs if set(pair) <= sizes.keys()]
    effect = statistics.visible(sizes, [statistics.pair(*names) for names in pairs])
    if effect is None:
        return "What this could show: nothing, for no comparison has two seeds on both sides."
    fewest = min(sizes[name] for pair in pairs for name in pair)
    design = f"{len(pairs)} {'comparison' if len(pairs) == 1 else 'comparisons'}, n = {fewest} per variant"
    log = statistics.on_log_scale(study.metric)
    groups = [scores for scores in _scores(study, store) if len(scores) > 1 and (not log or min(scores) > 0)]
    sd, origin = statistics.pooled_sd(groups, log), f"from {sum(map(len, groups))} runs in the store"
    if sd is None and log:
        sd, origin = (
            statistics.shipped_noise(study.preset, study.metric),
            f"as shipped for {study.preset} in reports/noise.yaml",
        )
    if sd is None:
        size = f"a difference in {study.metric} of {effect:.1f} sds over seeds or more; no run has measured this sd"
    else:
        of = "of its log over seeds" if log else "over seeds"
        size = f"{study.metric} {statistics.changed(effect * sd, log)}; sd {of} {sd:.2g}, {origin}"
    return f"What this could show with 80 % power ({design}): {size}."


def _scores(study: Study, store: Store | None) -> list[list[float]]:
    """The primary metric of the store's runs at this preset, variant by variant, over all studies.

    Only of runs with as many steps, the same pictures and the same scoring: the noise of others differs. The score is
    that of a report, the mean of the last evaluations. Copies of other studies' runs are left out.
    """
    if store is None:
        return []
    decisive = [name for name in flatten(study.base) if name.startswith(("data.", "eval.")) or name == "optim.steps"]
    alike = {name: show(flatten(study.base)[name]) for name in decisive}
    count = study.base.eval.endpoint
    found: dict[tuple[str, str, str], list[float]] = {}
    for experiment in store.client.search_experiments():
        for run in store.runs(experiment.experiment_id, "tags.kind = 'cell' and tags.outcome = 'finished'"):
            tags, params = run.data.tags, run.data.params
            if tags.get("preset") != study.preset or "shared_run" in tags or study.metric not in run.data.metrics:
                continue
            if any(params.get(name) != value for name, value in alike.items()):
                continue
            points = store.client.get_metric_history(run.info.run_id, study.metric) if count > 1 else []
            values = {point.step: point.value for point in points} or {0: run.data.metrics[study.metric]}
            last = [values[step] for step in sorted(values)[-count:]]
            if len(last) == count and all(map(math.isfinite, last)):
                group = (tags.get("study", ""), tags.get("protocol", ""), tags.get("variant", ""))
                found.setdefault(group, []).append(statistics.run_score(study.metric, last))
    return list(found.values())


def show_total(plans: Sequence[tuple[int, int, float]], console: Console) -> None:
    """Prints the sum of `plans`, one (cells, shared cells, seconds) per study."""
    cells, shared, seconds = (sum(column) for column in zip(*plans, strict=True))
    said = f"{len(plans)} studies, {cells} cells, {shared} of them shared: about {duration(seconds)}."
    console.print(f"\n{said}", markup=False, highlight=False, soft_wrap=True)


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends, if each in turn goes to the worker that is free first, as cells do."""
    free_at = [0.0] * workers
    for task in seconds:
        heapq.heapreplace(free_at, free_at[0] + task)
    return max(free_at)


def _measured_rates(study: Study, store: Store | None) -> dict[str, float]:
    """{variant: images per second} of runs of this protocol in the store."""
    if store is None:
        return {}
    experiment_id = store.find_experiment(study)
    rates: dict[str, float] = {}
    for run in store.runs(experiment_id, "tags.kind = 'cell'") if experiment_id else ():
        tags, metrics = run.data.tags, run.data.metrics
        if tags.get("protocol") == study.protocol and "variant" in tags and "images_per_sec" in metrics:
            rates[tags["variant"]] = metrics["images_per_sec"]
    return rates


def _flops_per_second(place: str, threads: int) -> float:
    """The speed of one large convolution, forward and backward, measured for a second."""
    import torch

    torch.set_num_threads(threads)
    device = torch.device(place)
    size, channels, batch = 32, 64, 16
    images = torch.randn(batch, channels, size, size, device=device)
    weight = torch.randn(channels, channels, 3, 3, device=device, requires_grad=True)
    flops = 2 * 2 * channels * channels * 9 * size * size * batch  # forward, and the weight's gradient
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < 1.0 or done < 3:
        loss = torch.nn.functional.conv2d(images, weight, padding=1).sum()
        loss.backward()
        loss.item()
        done += 1
    return done * flops / (time.perf_counter() - started)
