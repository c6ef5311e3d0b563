from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.document import StudyError
from ablations.plan import Range
from ablations.study import read_study
from sagan.config import flatten

WriteStudy = Callable[..., Path]


def with_line(line: str) -> dict[str, str]:
    """A change of a study that adds a line before its seeds."""
    return {"seeds:": f"{line}\nseeds:"}


SEARCH = """
    name: rates
    question: Which rates?
    preset: embedded
    seeds: [0, 1]
    baseline: preset
    search:
      seed: 100
      trials: 8
      objective: fid
      fields:
        optim.lr_g: {low: 1e-4, high: 2e-3, log: true}
        optim.d_steps: [1, 2]
    set: {optim.ttur: true}
"""

SEARCH_MISTAKES = [
    ({"seed: 100": "seed: 1"}, "7:9: search.seed: must not be among seeds"),
    ({"[0, 1]": "{first: 3, most: 6}"}, "4:8: seeds: must be a list with search"),
    ({"objective:": "objectiv:"}, "9:3: search.objectiv: no such .* did you mean 'objective'?"),
    ({"trials: 8": "trials: 0"}, "8:11: search.trials: must be a whole number in 1..10000, got 0"),
    ({"objective: fid": "objective: is"}, "9:14: search.objective: must be one of fid"),
    ({"lr_g": "lr_h"}, "11:5: search.fields.optim.lr_h: no such field; did you mean 'optim.lr"),
    ({"[1, 2]": "[1]"}, "12:20: search.fields.optim.d_steps: must be a list of two choices or more"),
    ({"[1, 2]": "[1, 1]"}, "12:24: search.fields.optim.d_steps.1: must not repeat a value, got 1 twice"),
    ({"[1, 2]": "[1, -1]"}, "12:24: .*d_steps.1: must be above 0, got -1"),
    ({"optim.d_steps: [1, 2]": "model.attention.at: [[8], [64]]"}, r"12:31: .*at.1: needs 128 px, got \[64\]"),
    ({"optim.d_steps: [1, 2]": "model.init: {low: 1, high: 2}"}, "12:17: .*is not a number"),
    ({"high: 2e-3, ": ""}, "11:17: search.fields.optim.lr_g.high: is missing"),
    ({"high: 2e-3": "high: 1e-5"}, "11:17: .*low must be below high, got 0.0001 and 1e-05"),
    ({"high: 2e-3": "high: fast"}, "11:35: .*lr_g.high: must be a finite number, got 'fast'"),
    ({"search:\n": "factors: {a: {preset: {}}}\nsearch:\n"}, "6:1: factors: cannot be used with search"),
    (
        {"set: {": "set: {eval.every: 10, eval.endpoint: 3, ", "[1, 2]": "[1, 2]\n    optim.steps: [20, 40]"},
        "13:19: search.fields.optim.steps.0: eval.endpoint: is longer than the run, which has 2 evaluations",
    ),
    ({"ttur: true": "ttur: false"}, "11:17: .*lr_g: has an effect only with optim.ttur=true, got optim.ttur=false; "),
    ({"baseline: preset": "baseline: best"}, "5:11: baseline: must not be a name"),
]


def test_a_search_is_read_with_the_types_of_its_fields(write_study: WriteStudy) -> None:
    study = read_study(write_study({"[1, 2]": "{low: 1, high: 4}"}, text=SEARCH))
    assert study.search is not None
    assert study.search.fields == {"optim.lr_g": Range(1e-4, 2e-3, True), "optim.d_steps": Range(1, 4)}
    assert [variant.name for variant in study.variants()] == ["preset"]


MISTAKES = [
    ({"question:": "qestion:"}, "2:1: qestion: no such field; did you mean 'question'?"),
    ({"baseline: none\n": ""}, "1:1: baseline: is missing"),
    ({"[0, 1]": "{first: 5, most: 4}"}, "5:16: seeds.first: must not be above most, got 5 and 4"),
    ({"[0, 1]": "{first: 3, mots: 4}"}, "5:8: seeds.most: is missing"),
    ({"[0, 1]": "{first: 3, most: 4}\nmargin: 0.0 %"}, "6:9: margin: must be a percentage above"),
    ({"[0, 1]": "{first: 3, most: 4}\nmargin: 0.1"}, "6:9: margin: .*got 0.1; write 10 %"),
    ({"[0, 1]": "[0, 1]\nmargin: 10 %"}, "6:9: margin: belongs to adaptive seeds"),
    ({"[0, 1]": "{first: 3, most: 4}\nmetric: relation_spread"}, "6:9: metric: must have a better direction"),
    (
        {
            "[0, 1]": "{first: 3, most: 4}",
            "    feat32: {model.attention.at: [32]}\n": "",
            "    feat64: {model.attention.at: [64]}\n": "",
        },
        "5:8: seeds: must be a list, because no comparison of the study can be made at this preset",
    ),
    (
        {"{model.attention.at: [32]}": f"{{optim.steps: {2**53 + 1}}}"},
        "10:27: .*optim.steps: must be 9007199254740992 at most, got 9007199254740993",
    ),
    ({"[0, 1]": "[0, 1, 0]"}, "5:15: seeds.2: must not repeat a value, got 0 twice"),
    ({"[0, 1]": "[true]"}, "5:9: seeds.0: must be a whole number"),
    ({"embedded": "embeded"}, "3:9: preset: must be one of .* did you mean 'embedded'?"),
    ({"attention.at: [32]": "atention.at: [32]"}, "10:14: .*no such field; did you mean 'model.attention.at'?"),
    ({"at: [32]": "at: [33]"}, "10:34: .*must be one of 8, 16"),
    ({"seeds: [0, 1]": "seeds: [0]\nseeds: [1]"}, "6:1: seeds: is on line 5 already"),
    ({"feat64:": "feat32:"}, "11:5: factors.attention.feat32: is on line 10 already"),
    ({"baseline: none": "baseline: non"}, "6:11: baseline: .*did you mean 'none'?"),
    ({"factors:\n": "factors:\n  other: {}\n"}, "8:10: factors.other: must have at least one level"),
    ({"none:   {}": "none:"}, "9:10: factors.attention.none: must map fields"),
    ({"none:   {}": "[1]: {}\n    none: {}"}, "9:5: factors.attention: a key must be a text"),
    ({"baseline: none": "baseline: false"}, "6:11: .*got False; put the name in"),
    ({"[0, 1]": "[0, 1"}, "6:9: not valid YAML"),
    ({"none:   {}": "none: &a {}\n    copy: *a"}, "9:11: .*anchors and aliases are not supported"),
    ({"question: Where": "question: !!python/name:os.system Where"}, "2:11: question: cannot be read"),
    ({"[0, 1]": f"[0x{'f' * 5000}]"}, "5:9: seeds.0: cannot be read as a value"),
    ({"[0, 1]": "!!python/object/apply:os.system ['true']"}, "5:8: seeds: tags are not supported, got '.*os.system'"),
    ({"Where should": '"\\ud800" #'}, r"2:11: question: .*unpaired surrogates, got .*\\ud800"),
    ({"Where should": "x" * 2000}, "2:11: question: must be a text of 1 to 1000 characters"),
    ({"paper: table1": '"a\\nb\\e[2J": 1'}, r"4:1: a\\nb\\x1b\[2J: no such field"),
    ({"  attention:": "  a+b:"}, "8:3: factors.a\\+b: must have no \\+"),
    ({"[0, 1]": f"{list(range(7000))}"}, "8:3: factors: must give 20,000 cells at most, got 3 variants x 7,000 seeds"),
    ({"embedded": "cifar10\nmetric: relation_error"}, "4:9: metric: .* built-in pictures only, and .* cifar10"),
    (with_line("contrasts: [[feat32, non]]"), "5:22: contrasts.0.1: must name a variant, .*did you mean 'none'?"),
    (with_line("contrasts: [[feat32, feat32]]"), "5:13: contrasts.0: must compare two variants, got 'feat32' twice"),
    (
        with_line("set: {eval.endpoint: 3, optim.steps: 20, eval.every: 10}"),
        "5:22: .*longer .*, which has 2 evaluations in 20 steps, got 3",
    ),
    (
        {**with_line("set: {optim.steps: 20, eval.every: 10, eval.endpoint: 2}"), "[32]": "[32], optim.steps: 9"},
        "11:53: .*feat32.optim.steps: eval.endpoint is longer than the run, which has 1 evaluations in 9 steps, got 2",
    ),
    (
        with_line("metric: is\nset: {eval.extractor: inception}"),
        "5:9: metric: needs an extractor whose classes fit the pictures of embedded; .*extractor=inception, got 'is'",
    ),
    (
        with_line("metric: class_consistency\nset: {model.conditioning: none}"),
        "5:9: metric: needs labels .*model.conditioning=none and eval.extractor=embedded-v., got 'class_consistency'",
    ),
    (
        {**with_line("metric: intra_fid"), "{model.attention.at: [32]}": "{model.conditioning: none}"},
        "11:13: factors.attention.feat32: lacks the study's metric intra_fid, which needs classes, and model.cond",
    ),
    (with_line("set: {eval.endpoint: 0}"), "5:22: .*must be above 0, got 0"),
    (
        {"factors:\n": "factors:\n  other: {none: {}, feat8: {model.attention.at: [8]}}\n"},
        "11:14: .*is changed by factors.other already",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_told_with_line_and_column(changes: dict[str, str], message: str, write_study: WriteStudy) -> None:
    path = write_study(changes)
    with pytest.raises(StudyError, match=f"{path}:{message}"):
        read_study(path)


@pytest.mark.parametrize(("changes", "message"), SEARCH_MISTAKES)
def test_a_mistake_in_a_search_is_told_alone(changes: dict[str, str], message: str, write_study: WriteStudy) -> None:
    path = write_study(changes, text=SEARCH)
    with pytest.raises(StudyError, match=f"^{path}:{message}.*$"):
        read_study(path)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write_study: WriteStudy) -> None:
    path = write_study({"embedded": "embeded", "[0, 1]": "[]", "at: [32]": "at: [33]"})
    with pytest.raises(StudyError) as caught:
        read_study(path)
    lines = [int(message.removeprefix(str(path)).split(":")[1]) for message in caught.value.messages]
    assert lines == [3, 5, 10]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"- 1\n", "1:1: must be a mapping"),
        (b"# Question\n\nname: x\n", "3:1: seeds: is missing"),
        (b"name: x\n'': 1\n", "2:1: '': no such field"),
        (b"\x7fELF\x02\xff\xfe", "is not UTF-8 text"),
        (b"name: \x00\x01", "not valid YAML: unacceptable character #x0000"),
        (b'name: "\\U99999999"\n', "not valid YAML"),
        (b"[" * 1000, "not valid YAML: maximum recursion depth exceeded"),
        (b" " * 1_000_001, "is larger than"),
    ],
)
def test_a_file_that_is_no_study_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=message):
        read_study(path)


def factor(letter: str, levels: int, field: str) -> str:
    return f"  {letter}:\n" + "".join(f"    {letter}{n}: {{{field}: {n + 1}}}\n" for n in range(levels))


def test_a_grid_of_more_cells_than_anybody_waits_for_is_refused_before_it_is_made(write_study: WriteStudy) -> None:
    head = "name: p\nquestion: Q?\npreset: embedded\ndesign: grid\nseeds: [0]\nbaseline: a0+b0+c0\nfactors:\n"
    fields = {"a": "optim.d_steps", "b": "model.width_g", "c": "optim.ema_start"}
    factors = "".join(factor(letter, 100, field) for letter, field in fields.items())
    with pytest.raises(StudyError, match="8:3: factors: must give 20,000 cells at most, got 1,000,000 variants x 1"):
        read_study(write_study(text=head + factors))
    fields["d"] = "model.z_dim"
    joined = "".join(factor(letter * 60, 2, field) for letter, field in fields.items())
    baseline = "+".join(f"{letter * 60}0" for letter in fields)
    with pytest.raises(StudyError, match="a variant's name must have 200 characters at most, because it names files"):
        read_study(write_study(text=(head + joined).replace("a0+b0+c0", baseline)))


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path, write_study: WriteStudy) -> None:
    missing = write_study().with_name("studdy.yaml")
    for path, message in ((tmp_path, "is a directory"), (missing, "no such file .*; did you mean '.*study.yaml'")):
        with pytest.raises(StudyError, match=message):
            read_study(path)


def test_command_line_overrides_are_checked_like_the_file(write_study: WriteStudy) -> None:
    with pytest.raises(StudyError, match="is changed by --set already"):
        read_study(write_study(), changes={"model.attention.at": "[8]"})
    with pytest.raises(StudyError) as caught:
        read_study(write_study(), preset="embeded", changes={"optim.stepz": "3", "optim.lr_g": "fast"})
    assert [message.split(" ")[0] for message in caught.value.messages] == ["--preset:", "--set", "--set"]
    assert "did you mean 'optim.steps'?" in caught.value.messages[1]


@pytest.mark.parametrize(
    ("metric", "preset", "changes"),
    [
        ("is", "embedded", {}),
        ("is", "cifar10", {"model.conditioning": "none"}),
        ("class_consistency", "imagenette64", {"eval.extractor": "imagenette-1a2b3c4d"}),
        ("relation_error", "embedded128", {"model.conditioning": "none"}),
    ],
)
def test_a_metric_that_the_runs_have_is_taken(
    metric: str, preset: str, changes: dict[str, str], write_study: WriteStudy
) -> None:
    path = write_study({"seeds:": f"metric: {metric}\nseeds:", "[32]": "[8]"})
    assert read_study(path, preset=preset, changes=changes).metric == metric


@pytest.mark.parametrize(
    ("changes", "preset", "lacking"),
    [
        ({"baseline: none": "baseline: feat64"}, None, "feat64 needs 128 px, got baseline 'feat64'"),
        ({}, "cifar10", "feat32 needs 64 px, feat64 needs 128 px, got baseline 'none'"),
        ({"factors:": "contrasts: [[feat64, none]]\nfactors:"}, None, "feat64 needs 128 px, got baseline 'none'"),
    ],
    ids=["no baseline", "the baseline alone", "a contrast"],
)
def test_a_study_that_can_compare_nothing_at_a_preset_is_refused(
    changes: dict[str, str], preset: str | None, lacking: str, write_study: WriteStudy
) -> None:
    path = write_study(changes)
    rule = f"no comparison can be made at preset {preset or 'embedded'}, because {lacking}; choose another preset"
    with pytest.raises(StudyError, match=f"^{path}:6:11: baseline: {rule}"):
        read_study(path, preset)


def test_steps_of_the_command_line_that_are_too_few_for_the_endpoint_are_told_once(write_study: WriteStudy) -> None:
    path = write_study(with_line("set: {eval.endpoint: 2, eval.every: 10}"))
    with pytest.raises(StudyError, match="^--set optim.steps: eval.endpoint is longer than the run") as caught:
        read_study(path, changes={"optim.steps": "10"})
    assert len(caught.value.messages) == 1


def test_levels_that_leave_too_few_evaluations_together_are_told(write_study: WriteStudy) -> None:
    factors = "factors:\n  steps: {short: {optim.steps: 40}, long: {}}\n  every: {rare: {eval.every: 20}, often: {}}\n"
    head = "name: p\nquestion: Q?\npreset: embedded\ndesign: grid\nseeds: [0]\nbaseline: long+often\n"
    path = write_study(text=f"{head}set: {{eval.every: 10, eval.endpoint: 3, optim.steps: 80}}\n{factors}")
    with pytest.raises(StudyError, match=r"9:3: factors.short\+rare.eval.every: eval.endpoint is longer than the run"):
        read_study(path)


RATES = """
    name: rates
    question: Which?
    preset: embedded
    seeds: [0]
    design: grid
    baseline: two+slow
    factors:
      ttur:
        two: {optim.ttur: true}
        one: {optim.lr_equal: 1e-3}
      rate:
        slow: {optim.lr_g: 1e-4}
        fast: {optim.lr_g: 4e-4}
"""


@pytest.mark.parametrize(
    ("replaced", "changes", "messages"),
    [
        (
            {},
            {},
            ["study.yaml:12:24: factors.rate.slow.optim.lr_g: has .*got optim.ttur=false; also .*variant one.slow",
             "study.yaml:13:24: factors.rate.fast.optim.lr_g: has .*got optim.ttur=false; also .*variant one.fast"],
        ),
        ({"one: {optim.lr_equal: 1e-3}": "alike: {optim.ttur: true, optim.beta1: 0.5}"}, {}, []),
        ({"grid": "one_at_a_time", "two+slow": "base", "two:": "base:", "slow:": "base:"}, {}, []),
        ({"    one: {optim.lr_equal: 1e-3}\n": ""}, {"optim.lr_equal": "1"}, ["--set optim.lr_equal: has an effect"]),
        (
            {"seeds": "set: {optim.lr_equal: 1e-3, optim.lr_d: 1e-3}\nseeds", "one: {optim.lr_equal: 1e-3}": "one: {}",
             "slow: {optim.lr_g: 1e-4}": "slow: {}", "fast: {optim.lr_g: 4e-4}": "fast: {optim.d_steps: 2}"},
            {},
            [],
        ),
    ],
    ids=["a grid", "two rates throughout", "one at a time", "--set", "set for some of the variants"],
)  # fmt: skip
def test_a_rate_that_some_variant_does_not_read_is_told_by_the_combined_config(
    replaced: dict[str, str], changes: dict[str, str], messages: list[str], write_study: WriteStudy
) -> None:
    path = write_study(replaced, text=RATES)
    if not messages:
        assert len({variant.config for variant in read_study(path, changes=changes).variants()}) > 2
        return
    with pytest.raises(StudyError) as caught:
        read_study(path, changes=changes)
    assert len(caught.value.messages) == len(messages)
    for message, pattern in zip(caught.value.messages, messages, strict=True):
        assert re.search(pattern, message), message


def test_a_rung_may_turn_off_what_an_earlier_one_set(write_study: WriteStudy) -> None:
    ladder = {"grid": "ladder", "two+slow": "two", "  rate:\n": "", "ttur: true": "ttur: true, optim.lr_g: 1e-3"}
    ladder |= {"one: {optim": "one: {optim.ttur: false, optim"}
    path = write_study({**ladder, "    slow: {optim.lr_g: 1e-4}\n    fast: {optim.lr_g: 4e-4}\n": ""}, text=RATES)
    assert [variant.config.optim.rates for variant in read_study(path).variants()] == [(1e-3, 1.2e-3), (1e-3, 1e-3)]


def test_a_level_may_be_called_off_and_change_what_set_gives_to_every_variant(write_study: WriteStudy) -> None:
    off = {"none:": "off:", "baseline: none": "baseline: off"}
    study = read_study(write_study(with_line("set: {model.attention.at: [8]}") | off))
    at = {variant.name: variant.config.model.attention.at for variant in study.variants()}
    assert at == {"off": (8,), "feat32": (32,), "feat64": (64,)}


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("optim.lr_equal", "1e-4", 1e-4),
        ("optim.d_steps", "010", 10),
        ("eval.num_samples", "0x40", 64),
        ("optim.ttur", "false", False),
        ("optim.streams", "'7'", 7),
        ("data.attribute", "''", ""),
    ],
)
def test_a_value_is_read_as_yaml_1_2_in_the_file_and_on_the_command_line(
    field: str, text: str, value: object, write_study: WriteStudy
) -> None:
    in_file = read_study(write_study({"seeds:": f"set: {{{field}: {text}}}\nseeds:"}))
    on_command_line = read_study(write_study(), changes={field: text})
    assert flatten(in_file.base)[field] == flatten(on_command_line.base)[field] == value


def test_no_is_a_text_in_the_file_and_on_the_command_line(write_study: WriteStudy) -> None:
    path, rule = write_study(with_line("set: {optim.ttur: no}")), "optim.ttur: must be true or false, got 'no'"
    with pytest.raises(StudyError, match=f"^--set {rule}.*\n.*5:19: set.{rule}"):
        read_study(path, changes={"optim.ttur": "no"})


@pytest.mark.parametrize("text", ["[8", "!!int x", "&a [*a]", "9" * 5000, "!!python/name:os.system", "*x", "a: b: c"])
def test_a_value_on_the_command_line_that_yaml_cannot_read_is_told(text: str, write_study: WriteStudy) -> None:
    with pytest.raises(StudyError, match="^--set model.attention.at: ") as caught:
        read_study(write_study(text=SEARCH), changes={"model.attention.at": text})
    assert len(caught.value.messages) == 1


def test_the_primary_metric_and_the_contrasts_reach_the_plan_without_what_cannot_be_built(
    write_study: WriteStudy,
) -> None:
    path = write_study(with_line("contrasts: [[feat32, none], [feat64, none]]"))
    plan = read_study(path).plan()
    assert (plan["metric"], plan["contrasts"]) == ("relation_error", [["feat32", "none"]])
    assert read_study(write_study({"[32]": "[8]"}), "cifar10").metric == "fid"


def test_a_shorter_run_takes_what_it_has_of_the_presets_own_endpoint(write_study: WriteStudy) -> None:
    assert read_study(write_study(with_line("set: {optim.steps: 5}"))).base.eval.endpoint == 1
    assert read_study(write_study(), changes={"optim.steps": "200"}).base.eval.endpoint == 2
    assert read_study(write_study()).base.eval.endpoint == 3
