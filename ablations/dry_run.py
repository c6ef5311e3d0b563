"""The plan of a study and what it costs, printed; nothing is written."""

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
from ablations.plan import Cell, Study, Variant, show
from ablations.preflight import sqlite_path
from reports import statistics
from sagan.config import Config, diff, flatten
from sagan.cost import Cost, count
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

    Returns that time in seconds, in which the first `shared` of the cells cost nothing: a study before has trained
    them. The trials of a search are not known ahead: give its outline.
    """
    store = _existing_store(tracking_uri)
    variants = study.variants()
    baseline = next(variant for variant in variants if variant.name == study.baseline)
    buildable = [variant for variant in variants if variant.build_error is None]
    costs = {v.name: count(v.config, num_classes(v.config.data, data_root)) for v in buildable}
    planned = {cell.variant for cell in cells}
    if calibration is not None:
        seconds = {v.name: calibration.cell_seconds(v.config) for v in buildable if v.name in planned}
        total = calibration.start + makespan([seconds[cell.variant] for cell in cells[shared:]], team.workers)
        each = max(speed.memory_mib for speed in calibration.speeds.values()) / 1024
        memory = f"{each:.1f} GiB of {'' if team.places == ('cpu',) else 'GPU '}memory each"
        memory += f", {each * team.workers:.1f} GiB in all" if team.places == ("cpu",) else ""
        said = f"About {duration(total)} on {team}, {memory}: measured just now."
    else:
        measured = _measured_rates(study, store)
        rate = None if measured.keys() >= costs.keys() else _flops_per_second(team.places[0], team.threads)
        seconds = {v.name: _seconds(v, costs[v.name], measured, rate) for v in buildable}
        total = makespan([seconds[cell.variant] for cell in cells[shared:]], team.workers)
        basis = "at the speed of earlier runs in the store" if rate is None else _ROUGH
        said = f"About {duration(total)} of training on {team}, {basis}. --calibrate does better: it measures."

    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{study.name}: {study.question}\nprotocol: {study.protocol}\n")
    if study.search is not None:
        say(f"{study.search}, counted at the values of {baseline.name}")
        variants = [baseline]
    for variant in variants:
        if variant is not baseline:
            say(f"{variant.name} changes against {baseline.name}: {_changes(baseline.config, variant)}")
    table = Table()
    for title in ("variant", "G params", "D params", "GFLOPs/image", "memory MiB", "a cell"):
        table.add_column(title, justify="left" if title == "variant" else "right", no_wrap=True)
    for variant in variants:
        table.add_row(variant.name, *_figures(variant, costs, seconds))
    console.print(table)

    names = ", ".join(cell.name for cell in cells)
    say(f"{len(cells)} cells{f', the first {shared} shared with studies above' if shared else ''}: {names}")
    say(said)
    say(_power(study, cells, store))
    return total


def _power(study: Study, cells: Sequence[Cell], store: Store | None) -> str:
    """The smallest difference that the cells show with 80 % power, and where the noise that it rests on is from."""
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

    Only of runs as long as these, on the same pictures and scored alike: others have another noise. Scored as a report
    scores them, by the mean of the last evaluations. A copy of another study's run is not counted twice.
    """
    if store is None:
        return []
    alike = {name: show(value) for name, value in flatten(study.base).items() if _decides_noise(name)}
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


def _decides_noise(field: str) -> bool:
    return field.startswith(("data.", "eval.")) or field == "optim.steps"


def show_total(plans: Sequence[tuple[int, int, float]], console: Console) -> None:
    """The sum over studies of (cells, shared ones, seconds)."""
    cells, shared, seconds = (sum(column) for column in zip(*plans, strict=True))
    said = f"{len(plans)} studies, {cells} cells, {shared} of them shared: about {duration(seconds)}."
    console.print(f"\n{said}", markup=False, highlight=False, soft_wrap=True)


_ROUGH = "if it ran at the speed of one large convolution; expect several times that at small widths"


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends, if each in turn goes to the worker that is free first, as cells do."""
    free_at = [0.0] * workers
    for task in seconds:
        heapq.heapreplace(free_at, free_at[0] + task)
    return max(free_at)


def _figures(variant: Variant, costs: dict[str, Cost], seconds: dict[str, float]) -> list[str]:
    if variant.build_error is not None:
        return [variant.build_error]
    cost = costs[variant.name]
    return [
        f"{cost.num_params_g:,}",
        f"{cost.num_params_d:,}",
        f"{cost.flops_per_image / 1e9:.3g}",
        f"{cost.memory_mib:,.0f}",
        duration(seconds[variant.name]) if variant.name in seconds else "",
    ]


def _changes(baseline: Config, variant: Variant) -> str:
    changes = diff(baseline, variant.config)
    return ", ".join(f"{name} {show(before)} -> {show(after)}" for name, (before, after) in changes.items())


def _seconds(variant: Variant, cost: Cost, measured: dict[str, float], rate: float | None) -> float:
    optim = variant.config.optim
    if variant.name in measured:
        return optim.steps * optim.batch_size * optim.d_steps / measured[variant.name]
    assert rate is not None
    return optim.steps * cost.flops_per_step / rate


def _existing_store(tracking_uri: str) -> Store | None:
    """None where it is a file that no launch has made yet: a plan writes nothing."""
    path = sqlite_path(tracking_uri)
    if path is not None and not path.exists():
        return None
    from ablations.tracking import Store  # imports MLflow

    return Store(tracking_uri)


def _measured_rates(study: Study, store: Store | None) -> dict[str, float]:
    """{variant: images a second} of runs of this protocol, where a store is there already."""
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
    """What one large convolution, forward and backward, reaches here within a second."""
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
