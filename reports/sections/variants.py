"""The table of scores, one row per variant, and what stands behind it: certainty, noise, costs, the best of a run."""

from __future__ import annotations

from reports import format, metrics, tables
from reports.comparison import against_baseline, compare, estimates, improvement, is_log, means, progress
from reports.findings import Comparison
from reports.format import ABSENT, number_or_absent
from reports.results import Results
from reports.sections.answer import power_statement
from reports.tables import Block, Row, Table

BESIDE = 3  # metrics beside the primary one: more fit no page, and all are in the table of every metric


def scores(results: Results) -> Table:
    """One row per variant: the scores, the difference to the baseline and how its runs ended."""
    beside = [key for key, metric in metrics.METRICS.items()
              if metric.in_scores and key in results.final_scores and key != results.metric]  # fmt: skip
    keys = (results.metric, *beside[:BESIDE])
    texts = [tables.score_texts(results, key) for key in keys]
    found = against_baseline(results, results.metric)
    one_reference = all(reference == results.baseline for _, reference in results.pairs)
    top = tables.best(results.metric, means(results, results.metric).values())
    rows = []
    for place, variant in enumerate(results.variants):
        score, *others = (of_metric[variant.name] for of_metric in texts)
        gap = found[variant.name].gap if variant.name in found else None
        cells = (variant.name, score, *((format.gap(gap),) if one_reference else ()),
                 tables.seeds_finished(results, variant), *others, tables.outcomes(results, variant))  # fmt: skip
        rows.append(Row(cells, frozenset({1}) if place in top else frozenset()))
    score, *others = (results.label(key, arrow=True) for key in keys)
    difference = (f"difference to {results.baseline}",) if one_reference else ()
    secondary = "; the others are secondary: they are not included in the multiplicity correction" if others else ""
    return Table(
        title="Scores",
        columns=("variant", score, *difference, "seeds", *others, "outcome"),
        blocks=(Block(None, tuple(rows)),),
        notes=(
            tables.caption(results),
            f"{results.label()} is the primary metric, by which the study answers{secondary}.",
            *((tables.intervals_note(results, results.metric),) if one_reference else ()),
            "Only finished cells enter a mean: a collapsed or diverged one is counted under outcome, never averaged.",
        ),
    )


def evidence(results: Results) -> Table | None:
    """How sure the comparisons are, one row each; with adaptive seeds also why a variant got no more."""
    compared = compare(results, results.metric)
    if not compared:
        return None
    looked = progress(results)
    rows = []
    for row in compared:
        n = row.gap.n if row.decided_after is None else row.decided_after
        why = () if looked is None else (_more_seeds(row, results),)
        cells = (row.variant, row.reference, format.gap(row.gap), row.verdict, str(n), *why,
                 format.p_value(row.gap), number_or_absent(improvement(results, results.metric, row), 2))  # fmt: skip
        rows.append(Row(cells))
    statement = power_statement(results)
    seeds = "Seeds: of the side that has fewer." if looked is None else "Seeds: at the decision, or so far."
    return Table(
        title="How sure",
        columns=("variant", "against", f"difference in {results.label()}", "verdict", "seeds",
                 *(() if looked is None else ("more seeds?",)), "p, adjusted", "P(better)"),
        blocks=(Block(None, tuple(rows)),),
        notes=(
            f"By the primary metric, {tables.taken_at(results)}. {tables.intervals_note(results, results.metric)} "
            f"{seeds} P(better) is the chance that a run of the variant scores better than a run of the other.",
            *((statement,) if statement else ()),
        ),
    )  # fmt: skip


def _more_seeds(row: Comparison, results: Results) -> str:
    """Whether a comparison gets more of the adaptive seeds, and if not why."""
    adaptive = results.adaptive
    assert adaptive is not None
    if row.verdict == "equivalent":
        assert adaptive.margin is not None
        return f"no: interval within {100 * adaptive.margin:g} %"
    if row.verdict != "undecided":
        return "no: interval without 0"
    if row.stopped_for_futility:
        return "no: a decision is unlikely"
    return "no: none planned" if row.decided_after == len(adaptive.seeds) else "yes"


def spread(results: Results) -> Table | None:
    """The noise of each variant: over training seeds, and of one run's score over samples."""
    spreads = {name: row.sd if row else None for name, row in estimates(results, results.metric).items()}
    if all(value is None for value in spreads.values()):
        return None
    sampling = means(results, "fid_se")
    columns, errors = [spreads], ""
    if results.metric == "fid" and any(value is not None for value in sampling.values()):
        columns.append(sampling)
        errors = (" The sampling error is that of one run's score, from its finite number of samples; it says nothing "
                  "about another training seed and enters no interval here.")  # fmt: skip
    digits = [format.decimals((value for value in column.values() if value), digits=2) for column in columns]
    rows = [
        Row((name, *(number_or_absent(column[name], count) for column, count in zip(columns, digits, strict=True))))
        for name in spreads
    ]
    of = f"the log of {results.label()}" if is_log(results, results.metric) else results.label()
    return Table(
        title="Noise",
        columns=("variant", f"sd over seeds of {of}", "sampling error")[: 1 + len(columns)],
        blocks=(Block(None, tuple(rows)),),
        notes=(f"Between training seeds of one variant.{errors}",),
    )


def costs(results: Results) -> Table | None:
    """Variants with different parameter counts or operations differ in more than the changed factor."""
    counted = ("num_params_g", "num_params_d", "flops_per_image")
    keys = [key for key in (*counted, "images_per_sec", "peak_memory_mib") if key in results.final_scores]
    if not keys:
        return None

    def text(variant: str, key: str) -> str:
        if key not in counted:  # differs from machine to machine more than from seed to seed: no interval
            return measured[key][variant].partition(" (")[0]
        found = results.final_scores.loc[results.cells["variant"] == variant, key].dropna()
        return format.count(float(found.to_numpy()[0])) if len(found) else ABSENT

    measured = {key: tables.score_texts(results, key) for key in keys if key not in counted}
    rows = (Row((variant.name, *(text(variant.name, key) for key in keys))) for variant in results.variants)
    return Table(
        title="Costs",
        columns=("variant", *(results.label(key, arrow=True) for key in keys)),
        blocks=(Block(None, tuple(rows)),),
        notes=("Parameters and operations are counted; images/s and memory are means over seeds, as measured.",),
    )


def best_of_run(results: Results) -> Table | None:
    """Scores of the best instead of the last checkpoint, in a table of their own."""
    if not any(estimates(results, "best/fid").values()):
        return None
    keys = [key for key in ("best/fid", "best/is", "best/intra_fid") if key in results.final_scores]
    texts = [tables.score_texts(results, key) for key in ("fid", *keys)]
    steps = means(results, "best/step")
    top = tables.best("best/fid", means(results, "best/fid").values())
    rows = [
        Row((name, *(column[name] for column in texts), number_or_absent(steps[name], 0)),
            frozenset({2}) if place in top else frozenset())
        for place, name in enumerate(steps)
    ]  # fmt: skip
    fid = results.label("fid")
    labels = (results.label(key.removeprefix("best/"), arrow=True) for key in keys)
    return Table(
        title="Best of run, scored again",
        columns=("variant", f"{fid}, last step ↓", *(f"best of run: {label}" for label in labels), "at step (mean)"),
        blocks=(Block(None, tuple(rows)),),
        notes=(
            "Every other table is of the last step's weights, which no score has chosen. Here each run's weights are "
            f"those of its evaluation with the lowest {fid}, scored again on fresh samples after the last step: "
            "the lowest of many values is biased downwards (selection bias). In brackets: 95 % t interval over "
            "training seeds.",
        ),
    )


def every_metric(results: Results) -> Table | None:
    """All metrics of samples at the last step, also those that no other table shows."""
    left_out = (*metrics.LOGGED_IN_TRAINING, "best/")
    keys = [key for key in sorted(results.final_scores.columns) if not key.startswith(left_out)]
    rows = [Row((results.label(key, arrow=True), *tables.score_texts(results, key).values())) for key in keys]
    columns = ("metric", *(variant.name for variant in results.variants))
    blocks = (Block(None, tuple(rows)),)
    return Table("Every metric", columns, blocks, (tables.caption(results),)) if rows else None
