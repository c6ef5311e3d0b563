"""Prints the plan of a study and its cost; nothing is written."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ablations import verdicts
from ablations.calibration import Calibration
from ablations.display import duration
from ablations.machine import WorkerPool
from ablations.plan import Cell, Study, show
from ablations.preflight import sqlite_path
from reports import sequential, statistics
from sagan.config import diff, flatten
from sagan.cost import Cost, count
from sagan.data import num_classes

if TYPE_CHECKING:
    from ablations.tracking.store import Store

_STUDIES = 1000  # simulated for each size of a difference: the number of runs is then known to a few per cent
Array = NDArray[Any]


def show_plans(
    planned: Sequence[tuple[Study, Sequence[Cell], WorkerPool]],
    reuse: bool,
    tracking_uri: str,
    console: Console,
    calibration: Calibration | None,
    data_root: Path | None,
    most: int | None,
) -> None:
    """Prints the plan of each study: what each variant changes and costs, the cells, and about how long they take here.

    With `reuse`, a cell that an earlier one of the studies has is shared, and takes no time.
    """
    store = _open_store(tracking_uri, [study for study, *_ in planned])
    total, num_shared, seen = 0.0, 0, set[tuple[str, int]]()
    for study, cells, pool in planned:
        study = study.with_all_trials()
        # What a search will train is not known, so none of it can be known to be shared.
        known = seen if reuse and study.search is None else set()
        shared = [cell for cell in cells if (cell.config_digest, cell.seed) in known]
        own = [cell for cell in cells if (cell.config_digest, cell.seed) not in known]
        seen.update((cell.config_digest, cell.seed) for cell in cells)
        num_shared += len(shared)
        variants = study.variants()
        costs = {v.name: count(v.config, num_classes(v.config.data, data_root)) for v in variants if not v.build_error}
        if calibration is not None:
            start, seconds = calibration.start, {cell.variant: calibration.cell_seconds(cell.config) for cell in cells}
        else:
            start, (seconds, basis) = 0.0, _estimated_seconds(study, cells, store, costs, pool)
        took = start + makespan([seconds[cell.variant] for cell in own], pool.workers)
        total += took

        console.out(f"{study.name}: {study.question}\nprotocol: {study.protocol}\n")
        baseline = next(variant for variant in variants if variant.name == study.baseline)
        if study.search is not None:
            console.out(f"{study.search}, counted at the values of {baseline.name}")
            variants = [baseline]
        table = _table("variant", "G params", "D params", "GFLOPs/image", "memory MiB", "per cell")
        for variant in variants:
            if variant is not baseline:
                changes = diff(baseline.config, variant.config).items()
                listed = ", ".join(f"{name} {show(old)} -> {show(new)}" for name, (old, new) in changes)
                console.out(f"{variant.name} changes against {baseline.name}: {listed}")
            if variant.build_error is not None:
                table.add_row(variant.name, variant.build_error)
                continue
            cost = costs[variant.name]
            numbers = (f"{cost.num_params_g:,}", f"{cost.num_params_d:,}", f"{cost.flops_per_image / 1e9:.3g}")
            per_cell = duration(seconds[variant.name]) if variant.name in seconds else ""
            table.add_row(variant.name, *numbers, f"{cost.memory_mib:,.0f}", per_cell)
        console.print(table)

        names = ", ".join(cell.name for cell in [*shared, *own])
        most_of = " at most" if study.adaptive else ""
        first = f", the first {len(shared)} shared with studies above" if shared else ""
        console.out(f"{len(cells)} cells{most_of}{first}: {names}")
        time = f"About {duration(took)}{most_of}"
        if calibration is not None:
            gib = max(speed.memory_mib for speed in calibration.speeds.values()) / 1024
            on_cpu = pool.devices == ("cpu",)
            memory = f"memory each, {gib * pool.workers:.1f} GiB in all" if on_cpu else "GPU memory each"
            console.out(f"{time} on {pool}, {gib:.1f} GiB of {memory}: measured just now.")
        else:
            console.out(f"{time} of training on {pool}, {basis}. --calibrate measures it.")
        noise = _noise(study, store)
        if study.adaptive:
            size = f" within {study.adaptive.margin:.0%}" if study.adaptive.margin else ""
            last = max(n for n in verdicts.rule(study, noise.log).looks if most is None or n <= most)
            console.out(f"Adaptive seeds, {study.adaptive.first} to {last} per variant{size}; {noise}:")
            copied = {cell.variant for cell in shared} - {cell.variant for cell in own}
            each = seconds | dict.fromkeys(copied, 0.0)
            console.print(_adaptive_cost(study, cells, last, each, pool.workers, noise))
        else:
            console.out(_power(study, cells, noise))
    if len(planned) > 1:
        num_cells = sum(len(cells) for _, cells, _ in planned)
        console.out(
            f"\n{len(planned)} studies, {num_cells} cells, {num_shared} of them shared: about {duration(total)}."
        )


def _open_store(uri: str, studies: Sequence[Study]) -> Store | None:
    """The MLflow store, after the checks of a launch; None where its file does not exist, which opening would make."""
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return None
    from ablations.tracking.store import Store  # imports MLflow

    try:
        store = Store(uri, read_only=True)
        for study in studies:
            store.check_experiment(study)
    except ValueError as error:
        raise ValueError(f"--tracking-uri: {error}") from None
    for study in studies:
        store.check_seeds(study)
    return store


def _estimated_seconds(
    study: Study, cells: Sequence[Cell], store: Store | None, costs: Mapping[str, Cost], pool: WorkerPool
) -> tuple[dict[str, float], str]:
    """({variant: seconds of a cell}, what this is estimated from).

    A variant takes the median of the finished runs with its config, in any study. One without such a run takes as long
    as its operations at the median speed of the finished runs that are alike, or of a convolution if there are none.
    """
    variants = {cell.config_digest: cell.variant for cell in cells}
    taken: dict[str, list[float]] = {}
    speeds: list[float] = []  # operations of forward passes per second
    for run in store.runs_of_all("tags.kind = 'cell' and tags.outcome = 'finished'") if store else ():
        tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
        if "shared_run" in tags or not run.info.end_time:
            continue
        took = max(run.info.end_time - run.info.start_time, 1) / 1000
        if variant := variants.get(tags.get("config_digest", "")):
            taken.setdefault(variant, []).append(took)
        if "flops_per_image" in metrics and _is_alike(study, tags, params):
            images = math.prod(int(params[f"optim.{name}"]) for name in ("steps", "batch_size", "d_steps"))
            speeds.append(images * metrics["flops_per_image"] / took)
    seconds = {name: median(own) for name, own in taken.items()}
    missing = {cell.variant: cell.config.optim for cell in cells if cell.variant not in seconds}
    basis = "at the speed of earlier runs in the store"
    if missing and not speeds:
        basis = "estimated from the speed of one large convolution; small networks may take several times as long"
        speed = _flops_per_second(pool.devices[0], pool.threads)
        seconds |= {name: optim.steps * costs[name].flops_per_step / speed for name, optim in missing.items()}
    elif missing:
        images_of = {name: optim.steps * optim.batch_size * optim.d_steps for name, optim in missing.items()}
        seconds |= {name: images_of[name] * costs[name].flops_per_image / median(speeds) for name in missing}
    return seconds, basis


def _power(study: Study, cells: Sequence[Cell], noise: Noise) -> str:
    """The smallest difference that the cells show with 80 % power, and the source of the noise that this assumes."""
    counts = Counter(cell.variant for cell in cells)
    sizes = {variant: n for variant, n in counts.items() if n > 1}  # a search's trials have one seed
    pairs = [pair for pair in study.pairs if set(pair) <= sizes.keys()]
    effect = statistics.minimum_detectable_effect(sizes, [statistics.pair(*names) for names in pairs])
    if effect is None:
        return "This study can show no difference: no comparison has two seeds for both variants."
    fewest = min(sizes[name] for pair in pairs for name in pair)
    design = f"{len(pairs)} {'comparison' if len(pairs) == 1 else 'comparisons'}, n = {fewest} per variant"
    if noise.sd is None:
        size = f"a difference in {study.metric} of {effect:.1f} sds over seeds or more; {noise}"
    else:
        size = f"{study.metric} {statistics.changed(effect * noise.sd, noise.log)}; {noise}"
    return f"What this could show with 80 % power ({design}): {size}."


@dataclass(frozen=True)
class Noise:
    """What is known of the primary metric: its sd over seeds, of the log with `log`, and otherwise its mean."""

    sd: float | None
    log: bool
    origin: str
    mean: float = 0.0

    def __str__(self) -> str:
        if self.sd is None:
            return "no run has measured this sd"
        return f"sd {'of its log over seeds' if self.log else 'over seeds'} {self.sd:.2g}, {self.origin}"


def _noise(study: Study, store: Store | None) -> Noise:
    """From the runs of the store at this preset, over all studies, else as shipped in reports/noise.yaml.

    Only runs with as many steps, the same pictures and the same scoring count: the noise of others differs. Copies of
    other studies' runs are left out.
    """
    log = statistics.on_log_scale(study.metric)
    found: dict[tuple[str, str, str], list[float]] = {}
    for run in store.runs_of_all("tags.kind = 'cell' and tags.outcome = 'finished'") if store else ():
        tags, params = run.data.tags, run.data.params
        if store and _is_alike(study, tags, params) and "shared_run" not in tags:
            group = (tags.get("study", ""), tags.get("protocol", ""), tags.get("variant", ""))
            found.setdefault(group, []).extend(store.score(run, study.metric).values())
    groups = [scores for scores in found.values() if len(scores) > 1 and (not log or min(scores) > 0)]
    runs = [score for scores in groups for score in scores]
    if groups:
        return Noise(statistics.pooled_sd(groups, log), log, f"from {len(runs)} runs in the store", fmean(runs))
    shipped = statistics.shipped_noise(study.preset, study.metric) if log else None
    return Noise(shipped, log, f"as shipped for {study.preset} in reports/noise.yaml")


def _is_alike(study: Study, tags: Mapping[str, str], params: Mapping[str, str]) -> bool:
    """Whether a run has the preset of the study, as many steps, the same pictures and the same scoring."""
    base = flatten(study.base)
    decisive = [name for name in base if name.startswith(("data.", "eval.")) or name == "optim.steps"]
    return tags.get("preset") == study.preset and all(params.get(name) == show(base[name]) for name in decisive)


def _adaptive_cost(
    study: Study, cells: Sequence[Cell], most: int, seconds: Mapping[str, float], workers: int, noise: Noise
) -> Table:
    """Runs and time that adaptive seeds take, where every comparison differs by nothing, 10 %, 20 % and 40 %.

    The study's own rule on simulated studies with scores that are normal, on the log scale where ratios are compared.
    The last look has `most` seeds; `seconds` are those of a cell of each variant.
    """
    assert study.adaptive is not None
    plan = verdicts.rule(study, noise.log)
    names = list(dict.fromkeys(name for pair in plan.pairs for name in pair))
    others = dict.fromkeys({cell.variant for cell in cells} - set(names), study.adaptive.first)
    table = _table("true difference", "runs", "time", "comparisons decided")

    def add(title: str, counts: Array | Sequence[Array], decided: str) -> None:
        """`counts` are the seeds of each variant, one array per simulated study. Looks run one after the other."""
        runs, took = 0, 0.0
        for own in counts:
            sizes = others | dict(zip(names, own.tolist(), strict=True))
            runs += sum(n for name, n in sizes.items() if name in seconds)
            for before, n in itertools.pairwise((0, *plan.looks)):
                new = [seconds[name] for name, size in sizes.items() if size >= n and name in seconds]
                took += makespan(new * (n - before), workers)
        table.add_row(title, f"{runs / len(counts):.0f}", duration(took / len(counts)), decided)

    for effect in (0.0, 0.1, 0.2, 0.4) if noise.sd else ():
        means = dict.fromkeys(names, 0.0 if noise.log else noise.mean)
        for variant, reference in plan.pairs:
            means[variant] = means[reference] + (math.log1p(-effect) if noise.log else -effect * noise.mean)
        draws = np.random.default_rng(0).standard_normal((_STUDIES, len(names), plan.looks[-1])) * (noise.sd or 0.0)
        scores = draws[:, :, :most] + np.array(list(means.values()))[:, None]
        labels, counts = sequential.replay_many(scores, names, plan, lower_is_better=True)
        add(f"{effect:.0%}" if effect else "no difference", counts, f"{(labels > 0).mean():.0%}")
    add("all seeds", [np.full(len(names), most)], "")
    return table


def _table(*titles: str) -> Table:
    table = Table()
    for title in titles:
        table.add_column(title, justify="left" if title == titles[0] else "right", no_wrap=True)
    return table


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends, if each in turn goes to the worker that is free first, as cells do."""
    free_at = [0.0] * workers
    for task in seconds:
        heapq.heapreplace(free_at, free_at[0] + task)
    return max(free_at)


def _flops_per_second(device: str, threads: int) -> float:
    """The speed of one large convolution, forward and backward, measured for a second."""
    import torch
    from torch.utils.benchmark import Timer

    size, channels, batch = 32, 64, 16
    values = {
        "conv2d": torch.nn.functional.conv2d,
        "images": torch.randn(batch, channels, size, size, device=device),
        "weight": torch.randn(channels, channels, 3, 3, device=device, requires_grad=True),
    }
    timer = Timer("conv2d(images, weight, padding=1).sum().backward()", globals=values, num_threads=threads)
    flops = 2 * 2 * channels * channels * 9 * size * size * batch  # forward, and the weight's gradient
    return flops / timer.blocked_autorange(min_run_time=1.0).median
