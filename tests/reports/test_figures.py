from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import made_studies
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_studies import geometric
from matplotlib.axis import Tick
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from reports import figures, style
from reports.comparison import compare, estimates, progress
from reports.figures import Drawn
from reports.page import PAGE
from reports.paper import published
from reports.results import Results
from reports.sections import answer, geometry, grid, ladder, samples, search, training

KINDS = ("ladder", "recipe", "rate_grid", "residual", "comparison", "search")


@pytest.fixture(autouse=True)
def look() -> Iterator[None]:
    with style.figure_style():
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    made = {kind: getattr(made_studies, kind)() for kind in KINDS}
    made["ladder"] = made_studies.ladder(pictures=tmp_path_factory.mktemp("ladder"))
    made["comparison"] = made_studies.comparison(pictures=tmp_path_factory.mktemp("comparison"))
    return made


def one(draw: Callable[[Results], Iterator[Drawn]], results: Results) -> Drawn:
    (drawn,) = draw(results)
    return drawn


SPECIAL = {
    "ladder": {"figure3", "stages", "waterfall"},
    "recipe": {"waterfall"},
    "rate_grid": {"rates"},
    "residual": set(),
    "comparison": {"stages", "published_classes"},
    "search": {"search_history", "search_importances"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_study_gets_its_figures_with_whole_labels_and_a_caption(
    kind: str, studies: dict[str, Results]
) -> None:
    drawn = [item for section in PAGE for draw in section.figures for item in draw(studies[kind])]
    assert {item.name for item in drawn} & set().union(*SPECIAL.values()) == SPECIAL[kind]
    for item in drawn:
        assert re.search(r"n = \d|one seed|one run|, seed \d", item.caption), item.caption
        assert re.search(r"step|one run|trial|n = ", item.caption), item.caption
        if kind == "residual" or item.name in SPECIAL[kind]:
            check_text(item)


def check_text(drawn: Drawn) -> None:
    """No text runs out of the picture or into another text, and none is too small to print."""
    drawn.figure.draw_without_rendering()
    width, height = drawn.figure.get_size_inches() * drawn.figure.dpi
    boxes = []
    for text in drawn_texts(drawn.figure):
        box = text.get_window_extent()
        assert -1 <= box.x0 < box.x1 <= width + 1 and -1 <= box.y0 < box.y1 <= height + 1, (drawn.name, text)
        assert text.get_fontsize() >= 7, (drawn.name, text)
        boxes.append((box.padded(-0.5), text.get_text()))
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), (drawn.name, first, second)


def drawn_texts(figure: Figure) -> list[Text]:
    """All but the labels that Matplotlib keeps of ticks beyond the axes."""
    of_ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text not in of_ticks]
    for axes in figure.axes:
        (low, high), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        if axes.axison:
            texts += [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
            texts += [label for label in axes.get_yticklabels() if bottom <= label.get_position()[1] <= top]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def test_a_collapsed_run_ends_in_a_cross_at_its_last_score(studies: dict[str, Results]) -> None:
    results = studies["ladder"]
    ours = one(training.figure3, results).figure.axes[:2]
    last = results.history("fid").groupby(["variant", "seed"]).last()["value"]
    ends = {(step, last[name, seed]) for (name, seed), step in
            {("sn_d", 0): 500, ("sn_d", 1): 750, ("sn_d", 2): 1000, ("sn_g_d", 2): 1500}.items()}  # fmt: skip
    crosses = {(line.get_xdata()[0], line.get_ydata()[0]) for line in ours[1].lines if line.get_marker() == "x"}
    assert crosses == ends


def test_the_papers_curves_share_no_axes_with_ours(studies: dict[str, Results]) -> None:
    axes = one(training.figure3, studies["ladder"]).figure.axes
    theirs = {record.value for table in ("figure3", "figure4") for record in published(table)}
    shown = [{float(value) for line in panel.lines for value in np.ravel(line.get_ydata())} for panel in axes]
    assert not shown[0] & theirs and not shown[1] & theirs
    assert shown[2] | shown[3] == theirs


@pytest.mark.parametrize("kind, first", [("recipe", 0), ("ladder", 1)])
def test_the_steps_of_a_waterfall_lead_from_its_first_total_to_its_last(
    kind: str, first: int, studies: dict[str, Results]
) -> None:
    results = studies[kind]
    means = [geometric(values) for values in results.finished("fid").values() if values]
    axes = one(ladder.waterfall, results).figure.axes[0]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches]
    assert np.allclose(bars, [(before, after, first + place + 1) for place, (before, after)
                              in enumerate(itertools.pairwise(means))])  # fmt: skip
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[first] == results.variants[first].name and labels[-1] == results.variants[-1].name


def test_a_rung_that_collapsed_is_named_and_has_no_bar(studies: dict[str, Results]) -> None:
    drawn = one(ladder.waterfall, studies["ladder"])
    assert [text.get_text() for text in drawn.figure.axes[0].texts][0] == "3 collapsed"
    assert "1 of 3 collapsed" in drawn.figure.axes[0].texts[1].get_text()
    assert "n = 2 to 3" in drawn.caption


def test_the_heat_map_of_rates_has_each_mean_and_each_ratio_in_its_place(studies: dict[str, Results]) -> None:
    results = studies["rate_grid"]
    axes = one(grid.rates, results).figure.axes[0]
    for line, ratio in zip(axes.lines, (1, 4), strict=True):  # where D's rate is so many times G's
        x, y = np.array(line.get_xdata(), dtype=float), np.array(line.get_ydata(), dtype=float)
        lr_d, lr_g = 1e-4 * 2 ** (x - 0.5), 1e-4 * 2 ** (3.5 - y)
        assert np.allclose((lr_d / lr_g)[~np.isnan(x)], ratio)
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text().split("\n")
               for text in axes.texts if not text.get_text().startswith("ratio")}  # fmt: skip
    rates = [1e-4, 2e-4, 4e-4, 8e-4]
    for variant in results.variants:
        place = 3 - rates.index(variant.changes["optim.lr_g"]), rates.index(variant.changes["optim.lr_d"])
        scores = results.finished("fid")[variant.name]
        assert written[place][0] == (f"{geometric(scores):.1f}" if scores else written[place][0])
    assert written[0, 0] == ["3", "collapsed"] and written[0, 3] == ["missing"]
    assert written[0, 1][1:] == ["1 of 3", "diverged"]
    assert sorted((int(patch.get_y()), int(patch.get_x())) for patch in axes.patches) == [(0, 0), (0, 1), (1, 0)]


def test_a_grid_over_other_fields_gets_no_heat_map_of_rates(studies: dict[str, Results]) -> None:
    results = studies["rate_grid"]
    assert not list(grid.rates(replace(results, design="one_at_a_time")))
    switches = tuple(replace(variant, changes={"model.sn.g": True}) for variant in results.variants)
    assert not list(grid.rates(replace(results, variants=switches)))


def test_stages_show_each_score_at_its_step_and_how_a_run_ended(studies: dict[str, Results]) -> None:
    results = studies["ladder"]
    panels = one(samples.stages, results).figure.axes
    history = results.history("fid").set_index(["variant", "seed", "step"])["value"]
    assert [panel.get_title() for panel in panels[:4]] == ["step 250", "step 750", "step 1,500", "step 2,000"]
    assert panels[6].get_xlabel() == f"{history['sn_g_d', 0, 1500]:.1f}"
    assert panels[1].texts[0].get_text() == "collapsed\nat 500" and not panels[1].images


def test_attention_maps_are_those_of_the_last_layer_framed_in_their_points_colour(studies: dict[str, Results]) -> None:
    drawn = list(samples.attention(studies["comparison"]))
    assert [item.name for item in drawn] == [f"attention_{name}_g32" for name in ("acgan", "sngan_projection", "sagan")]
    first, *maps = drawn[0].figure.axes[:4]
    dots = [to_rgb(line.get_color()) for line in first.lines]
    assert len(set(dots)) == 3 and dots == [to_rgb(panel.spines["top"].get_edgecolor()) for panel in maps]


def test_class_differences_are_ratios_with_textures_and_geometry_apart(studies: dict[str, Results]) -> None:
    results = studies["comparison"]
    axes = one(geometry.classes, results).figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["texture", "geometry"]
    own, baseline = (results.finished("fid_class/rings")[name] for name in ("sagan", "sngan_projection"))
    ratio = geometric(own) / geometric(baseline)
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines
              if line.get_color() == figures.variant_styles(results)["sagan"].colour]  # fmt: skip
    assert any(abs(x - ratio) < 1e-9 and 3.5 < y < 4.5 for x, y in points)


def test_a_search_has_a_line_of_the_best_so_far_and_its_largest_importance_on_top(studies: dict[str, Results]) -> None:
    results = studies["search"]
    assert results.search is not None
    best, trials, *ended = one(search.history, results).figure.axes[0].lines
    values = [trial.value for trial in results.search.trials if trial.value is not None]
    assert (np.diff(best.get_ydata()) <= 0).all() and best.get_ydata()[-1] == min(values)
    assert list(trials.get_ydata()) == values
    assert [list(line.get_xdata()) for line in ended] == [[3], [5], [11]]
    bars = one(search.importances, results).figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.05, 0.24, 0.71]


PLANS = {
    "table 1": made_studies.RESIDUAL,
    "rates": tuple(f"g{g}e-4+d{d}e-4" for g in (1, 2, 4, 8) for d in (1, 2, 4, 8)),
    "block": ("official", "unpooled", "key1", "key2", "key4", "value8", "value1", "gamma_one", "scaled", "no_sn",
              "paper", "deep"),
    "all hues": tuple("abcdefghi"),
    "small": ("none", "feat8", "feat16", "feat32", "feat64"),
}  # fmt: skip


@pytest.mark.parametrize("variants", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("sight", ["normal", "deuteranopia", "protanopia"])
def test_any_two_variants_can_be_told_apart_also_without_red_or_green(variants: tuple[str, ...], sight: str) -> None:
    styles = style.variant_styles(variants, variants[0])
    assert list(styles) == list(variants)
    for first, second in itertools.combinations(styles.values(), 2):
        if np.linalg.norm(lab(first.colour, sight) - lab(second.colour, sight)) < 10:
            assert first.dash != second.dash, (first, second)


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
}  # fmt: skip


def lab(colour: str, sight: str) -> np.ndarray:
    """CIE Lab (D65) of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(SIGHT[sight] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / [0.9505, 1.0, 1.089], 1e-4))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture
def relations() -> Results:
    """Three variants by relation_error, from 0.1 to 2, with FD beside it."""
    results = made_studies.results({"none": 40.0, "feat16": 6.0, "feat32": 2.5})
    history = results.histories[results.histories["key"] == "fid"].assign(key="relation_error")
    history["value"] = history["value"].clip(lower=2.0) / 20
    final_scores = results.final_scores.assign(relation_error=results.final_scores["fid"].clip(lower=2.0) / 20)
    return replace(
        results, final_scores=final_scores, histories=pd.concat([results.histories, history]), metric="relation_error"
    )


def test_a_positive_primary_metric_is_drawn_by_its_logarithm_and_never_below_zero(relations: Results) -> None:
    drawn = one(answer.seeds, relations)
    (axes,) = drawn.figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "relation error ↓"
    rows = estimates(relations, "relation_error")
    ends = [segment for part in axes.collections for segment in part.get_segments()]
    assert len(ends) == 3
    for row, segment in zip(rows.values(), ends, strict=True):
        assert row is not None and 0 < segment[:, 0].min() == pytest.approx(row.low)
        assert segment[:, 0].max() == pytest.approx(row.high)
    assert "bar: geometric mean; whiskers: 95 % t interval of the logarithm. n = 3, last step" in drawn.caption
    differences = one(answer.differences, relations)
    (axes,) = differences.figure.axes
    assert axes.get_xscale() == "log" and [1, 1] in [list(line.get_xdata()) for line in axes.lines]
    assert axes.get_xlabel() == "relation error\nover that of none (left is better)"
    assert differences.caption.startswith("Ratio of geometric means; whiskers: simultaneous 95 % interval over 2 comp")
    first, second, *_ = training.scores(relations)
    assert (first.name, second.name) == ("curve_relation_error", "curve_fid")
    assert first.figure.axes[0].get_yscale() == "log"


def test_differences_of_groups_stand_on_the_axis_that_their_scale_asks_for(relations: Results) -> None:
    drawn = one(geometry.groups, relations)
    (axes,) = drawn.figure.axes
    assert axes.get_xscale() == "log" and [1, 1] in [list(line.get_xdata()) for line in axes.lines]
    gaps = [row.gap.value for group in made_studies.GROUPS for row in compare(relations, f"fid_group/{group}")]
    points = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() in ("o", "s")]
    assert points == pytest.approx(np.exp(gaps))
    assert axes.get_xlabel() == "FD embedded-v1 of a group\nover that of none (left is better)"
    single = replace(relations, classes=("grain", "twins"), groups={"texture": (0,), "geometry": (1,)})
    assert not list(geometry.classes(single)), "groups of one class each are drawn once"


def test_looks_are_drawn_to_the_one_that_decided() -> None:
    results = made_studies.adaptive()
    looked = progress(results)
    assert looked is not None
    drawn = one(answer.looks, results)
    check_text(drawn)
    axes = drawn.figure.axes[0]
    for (variant, reference), verdict in looked.verdicts.items():
        gaps = [gaps[variant, reference] for gaps in looked.looks.values() if (variant, reference) in gaps]
        colour = figures.variant_styles(results)[variant].colour
        lines = [line for line in axes.lines if line.get_color() == colour]
        bars, points = lines[::2], lines[1::2]
        assert [tuple(line.get_ydata()) for line in bars] == [(math.exp(gap.low), math.exp(gap.high)) for gap in gaps]
        assert [line.get_ydata()[0] for line in points] == [math.exp(gap.value) for gap in gaps]
        filled = [line.get_markerfacecolor() == colour for line in points]
        assert filled == [False] * (len(gaps) - 1) + [verdict.label != "undecided"]
    assert not list(answer.looks(made_studies.adaptive(until=0)))
    assert not list(answer.looks(replace(results, adaptive=None)))


def test_one_seed_has_no_whiskers_to_explain() -> None:
    results = made_studies.results({"none": 20.0, "feat16": 18.0}, seeds=(0,))
    for draw in (answer.seeds, answer.differences, geometry.groups, geometry.classes):
        assert "whiskers" not in one(draw, results).caption


@pytest.mark.parametrize("low, high", [(34.3, 34.5), (0.97, 1.02), (0.4, 0.75), (0.2, 2.1), (1e-3, 20.0)])
def test_a_log_axis_has_a_few_ticks_at_round_numbers_however_far_it_reaches(low: float, high: float) -> None:
    fig, axes = figures.new_axes(height=1.0)
    axes.plot([low, high], [0, 1])
    figures.log_axis(axes, "x")
    fig.canvas.draw()
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert 2 <= len(ticks) <= 9
    assert all(float(f"{tick:.4g}") == pytest.approx(tick, rel=1e-9) for tick in ticks)
