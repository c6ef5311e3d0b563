"""Tables that follow from how a study is planned: matched pairs, ladders, grids and searches."""

from __future__ import annotations

from collections.abc import Mapping

from reports import statistics, style
from reports.columns import (
    ABSENT,
    best,
    caption,
    fixed,
    gap_text,
    means,
    outcomes,
    p_text,
    seeds,
    simultaneous,
    texts,
)
from reports.paper import published
from reports.summary import compare, is_log
from reports.tables import table
from reports.unit import SearchTrial, Unit, Variant
from reports.writers import Row, Section, Table

CONTROLS = {"residual": "residual, as many parameters", "residual_flops": "residual, as many operations"}


@table("Answer")
def attention_against_residual(unit: Unit) -> Table | None:
    """Each place by itself: what attention does that a plain block of the same size or cost does not."""
    places = _places(unit)
    kinds = [kind for kind in CONTROLS if any(kind in row for row in places.values())]
    if not kinds:
        return None
    shown = texts(unit, unit.metric)
    gaps = {(row.variant, row.reference): row.gap for row in compare(unit, unit.metric)}
    columns, body = ["at", "self-attention"], []
    for kind in kinds:
        columns += [CONTROLS[kind], "attention against it", "p, adjusted"]
    for place, row in places.items():
        attention = row.get("self_attention", "")
        cells = [f"{place} × {place}", shown.get(attention, ABSENT)]
        for kind in kinds:
            control = row.get(kind, "")
            gap = gaps.get((attention, control))
            cells += [shown.get(control, ABSENT), gap_text(gap), p_text(gap.p if gap else None)]
        body.append(Row(tuple(cells)))
    return Table(
        name="attention_against_residual",
        title="Attention against a residual block in its place",
        columns=tuple(columns),
        sections=(Section(f"{style.label(unit.metric, unit.fingerprint, arrow=True)}", tuple(body)),),
        notes=(caption(unit), simultaneous(unit, unit.metric)),
    )


def _places(unit: Unit) -> dict[int, dict[str, str]]:
    """{side of the feature map: {kind: variant}} of the variants with one block at one place, in both networks."""
    fields = {"model.attention.at", "model.attention.kind"}
    found: dict[int, dict[str, str]] = {}
    for item in unit.variants:
        at = item.changes.get("model.attention.at")
        if isinstance(at, list) and len(at) == 1 and item.changes.keys() <= fields:
            kind = item.changes.get("model.attention.kind", "self_attention")
            found.setdefault(at[0], {})[kind] = item.name
    return dict(sorted(found.items()))


@table("Answer")
def ladder(unit: Unit) -> Table | None:
    """What each rung adds to the one above it, where changes add up."""
    if unit.design != "ladder":
        return None
    gaps = {(row.variant, row.reference): row.gap for row in compare(unit, unit.metric)}
    steps = {low: (high, gap) for (low, high), gap in gaps.items()}
    shown, top = texts(unit, unit.metric), best(unit.metric, means(unit, unit.metric).values(), 0)
    body = []
    for place, item in enumerate(unit.variants):
        adds = _added(unit.variants[place - 1], item) if place else "where the ladder starts"
        _, gap = steps.get(item.name, ("", None))
        cells = (item.name, adds, shown[item.name], gap_text(gap), p_text(gap.p if gap else None),
                 seeds(unit, item), outcomes(unit, item))  # fmt: skip
        body.append(Row(cells, frozenset({2}) if place in top else frozenset()))
    return Table(
        name="ladder",
        title="Step by step",
        columns=("rung", "adds", style.label(unit.metric, unit.fingerprint, arrow=True), "to the rung above",
                 "p, adjusted", "seeds", "outcome"),
        sections=(Section(None, tuple(body)), *_published_ends(unit)),
        notes=(
            caption(unit),
            f"{simultaneous(unit, unit.metric)} A rung stands on those above it: in another order it may add more or "
            "less.",
        ),
    )  # fmt: skip


def _added(high: Variant, low: Variant) -> str:
    new = {field: value for field, value in low.changes.items() if high.changes.get(field) != value}
    return ", ".join(f"{field} = {_setting(value)}" for field, value in new.items())


def _published_ends(unit: Unit) -> tuple[Section, ...]:
    """The two published ends of the recipe gap; what lies between them nobody has measured."""
    records = published("recipe_gap")
    if unit.paper != "recipe_gap":
        return ()
    fid = [record for record in records if record.metric == "fid"]
    rows = (Row((record.variant.replace("_", " "), "", f"FID {style.number(record.value, 2)}", "", "", "1 run", ""))
            for record in fid)  # fmt: skip
    return (Section(f"published: {fid[0].dataset}, {fid[0].protocol}; {fid[0].source}", tuple(rows), published=True),)


@table("Answer")
def grid(unit: Unit) -> Table | None:
    """Two factors crossed: the levels of the first go down, those of the second across."""
    if unit.design != "grid" or len(unit.factors) != 2:
        return None
    down, across = unit.factors
    crossed = (item for item in unit.variants if {down, across} <= item.factors.keys())
    at = {(item.factors[down], item.factors[across]): item for item in crossed}
    rows, columns = (list(dict.fromkeys(pair[place] for pair in at)) for place in (0, 1))
    shown, figures = texts(unit, unit.metric), means(unit, unit.metric)
    top = (min if style.lower_is_better(unit.metric) is not False else max)(
        (figure for figure in figures.values() if figure is not None), default=None
    )
    body = []
    for level in rows:
        found = [at.get((level, other)) for other in columns]
        cells = (shown[item.name] if item else ABSENT for item in found)
        bold = {place for place, item in enumerate(found, 1) if item and top is not None and figures[item.name] == top}
        body.append(Row((level, *cells), frozenset(bold)))
    return Table(
        name="grid",
        title=f"{down} by {across}",
        columns=(f"{down} \\ {across}", *columns),
        sections=(Section(style.label(unit.metric, unit.fingerprint, arrow=True), tuple(body)),),
        notes=(caption(unit), *_rates(unit)),
    )


def _rates(unit: Unit) -> tuple[str, ...]:
    """The learning rates, where no variant turns them and both are one: the paper does not publish this choice."""
    rates = {item.rates for item in unit.variants if item.params}
    if len(rates) != 1 or (lr_g := next(iter(rates))[0]) is None or rates != {(lr_g, lr_g)}:
        return ()
    here = f"{lr_g:g}"
    return (f"All variants train with lr_G = lr_D = {here}; the paper does not publish the equal rate that it used.",)


@table("Answer")
def effects(unit: Unit) -> Table | None:
    """Two switches crossed: what each does on average over the other, and whether the two add up."""
    levels = [list(dict.fromkeys(item.factors.get(name, "") for item in unit.variants)) for name in unit.factors]
    if unit.design != "grid" or [len(found) for found in levels] != [2, 2] or len(unit.variants) != 4:
        return None
    at = {tuple(item.factors[name] for name in unit.factors): item.name for item in unit.variants}
    (off, on), (low, high) = levels
    contrasts: dict[str, dict[tuple[str, str], float]] = {
        f"{unit.factors[0]}: {on} against {off}": (
            {(on, high): 0.5, (on, low): 0.5, (off, high): -0.5, (off, low): -0.5}
        ),
        f"{unit.factors[1]}: {high} against {low}": (
            {(on, high): 0.5, (off, high): 0.5, (on, low): -0.5, (off, low): -0.5}
        ),
        "both together beyond their sum": {(on, high): 1, (off, low): 1, (on, low): -1, (off, high): -1},
    }
    values, log = unit.finished(unit.metric), is_log(unit, unit.metric)
    gaps = statistics.compare(
        {name: list(own.values()) for name, own in values.items()},
        [{at[pair]: weight for pair, weight in contrast.items()} for contrast in contrasts.values()],
        log,
    )
    body = [
        Row((name, gap_text(gap), str(gap.n) if gap else ABSENT, p_text(gap.p if gap else None)))
        for name, gap in zip(contrasts, gaps, strict=True)
    ]
    beyond = (
        "of their factors: where the last line is 0 % the ratios multiply"
        if log
        else ("of the two: where the last line is 0 the two add up")
    )
    return Table(
        name="effects",
        title="Does it add up?",
        columns=("effect", f"in {style.label(unit.metric, unit.fingerprint)}", "seeds", "p, adjusted"),
        sections=(Section(None, tuple(body)),),
        notes=(
            "Effects of one switch are averaged over the other. The last line is what both do beyond the "
            f"{'product' if log else 'sum'} {beyond}. p and the 95 % intervals are simultaneous over the three lines, "
            "by "
            "the test of the other tables; these lines are secondary to the study's own comparisons.",
        ),
    )


@table("Search")
def trials(unit: Unit) -> Table | None:
    """Every trial of a search, best first. They chose what is confirmed, and enter no mean."""
    if unit.search is None or not unit.search.trials:
        return None
    search = unit.search

    def rank(trial: SearchTrial) -> tuple[bool, float, int]:
        return (trial.value is None, trial.value or 0.0, trial.number)

    digits = style.decimals((trial.value for trial in search.trials if trial.value is not None), digits=3)
    body = [
        Row(
            (trial.variant, *(_setting(trial.params.get(field)) for field in search.fields),
             fixed(trial.value, digits), trial.state),
            frozenset({0, len(search.fields) + 1}) if trial.variant == search.best else frozenset(),
        )
        for trial in sorted(search.trials, key=rank)
    ]  # fmt: skip
    ranges = "; ".join(f"{field} {_range(found)}" for field, found in search.fields.items())
    label = style.label(search.objective, unit.fingerprint, arrow=True)
    return Table(
        name="trials",
        title="Trials of the search",
        columns=("trial", *search.fields, label, "state"),
        sections=(Section(None, tuple(body)),),
        notes=(
            f"Searched: {ranges}. A trial is one run on one seed. The lowest of many such values flatters its setting, "
            f"so the best is run again, as variant best, beside {unit.baseline}, on seeds that the search did not see; "
            "the other tables hold these runs alone.",
        ),
    )


def _setting(value: object) -> str:
    if value is None:
        return ABSENT
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _range(found: Mapping[str, object]) -> str:
    if "choices" in found:
        choices = found["choices"]
        assert isinstance(choices, list)
        return f"one of {', '.join(map(str, choices))}"
    return f"{_setting(found['low'])} to {_setting(found['high'])}{', log scale' if found.get('log') else ''}"
