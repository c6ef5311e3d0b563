"""Study files that were mutated hundreds of times: a located error or a valid plan, never a traceback."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ablations.document import StudyError
from ablations.plan import Cell
from ablations.study import read_study

SHIPPED = [path.read_text() for path in sorted((Path(__file__).parents[2] / "studies").rglob("*.yaml"))]
STUDIES = [re.sub("^#.*\n", "", text, flags=re.M) for text in SHIPPED]  # nothing in a comment can go wrong
SCALARS = (
    *("", "~", "null", "true", "off", ".nan", "-.inf", ".inf", "1e400", "-1", "0", "1_000", "0x1f", "0o17", "1:30:00"),
    *("99999999999999999999", "1e999999999", "9" * 5000, f"0x{'f' * 5000}", "1e-4", "2001-99-99", "2001-01-01"),
    *("!!bool maybe", "!!int ''", "!!float x", "!!timestamp x", "!!binary x", "!!null x", "!!str 5", "!!set {a}"),
    *("!!python/object/apply:os.system ['touch RAN']", "!!python/name:os.system", "!<tag:x> x", "!!python/tuple [1]"),
    *("../../evil", "/etc/passwd", "con", ".", "..", ".hidden", "x" * 300, "a/b", "a\\b", "a b", "-rf", "--help"),
    *("<script>", "\\input{/etc/passwd}", "50%", "$x$", "a&b", "'", '"\'; drop table runs; --"', "{{ 7*7 }}", "best"),
    *('"\\ud800"', '"\\U99999999"', '"\\0"', '"a\\nb"', '"\\e[2J"', "\u202eevil", "日本", "\u2028", "\U0001f600"),
    *("&a [*a]", "&b {x: *b}", "*nowhere", "<<", "? [a]", "[", "{", "]", "}", "|", ">", "---", "...", "@", "`", "%"),
    *("[[[[[[1]]]]]]", "{a: {b: {c: {}}}}", "[1, 1]", "[a, {b: [c]}]", "{low: 1, high: 0}", "{low: .nan, high: x}"),
    *("model.attention.at: [8]", "optim.lr_g: x", "trial00", "none", "grid", "ladder", "search", "[8, 64]", "[64, 64]"),
    *("\t", "- - -", "\x07"),
)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
TOKEN = re.compile(r"[^\s:,\[\]{}#]+|[\[\]{}:,]")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A shipped study after one to three mutations of its text, its tree or its bytes."""
    text = draw(st.sampled_from(STUDIES))
    for _ in range(draw(st.integers(1, 3))):
        text = draw(st.sampled_from(MUTATIONS))(draw, text)
    content = text.encode(errors="surrogatepass")
    match draw(st.integers(0, 19)):
        case 0:
            return content[: draw(st.integers(len(content) // 4, len(content)))]
        case 1:
            place = draw(st.integers(0, len(content)))
            return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
    return content


def token_replaced(draw: st.DrawFn, text: str) -> str:
    tokens = list(TOKEN.finditer(text)) or [re.search("", text)]
    token = draw(st.sampled_from(tokens))
    assert token is not None
    other = draw(
        st.one_of(st.sampled_from(SCALARS), st.text(max_size=12), st.floats().map(str), st.integers().map(str))
    )
    return text[: token.start()] + other + text[token.end() :]


def lines_moved(draw: st.DrawFn, text: str) -> str:
    """One line or more deleted, doubled, indented, or put elsewhere."""
    lines = text.splitlines(keepends=True) or [""]
    first = draw(st.integers(0, len(lines) - 1))
    last = draw(st.integers(first, min(len(lines), first + 4)))
    taken, rest = lines[first:last], lines[:first] + lines[last:]
    place = draw(st.integers(0, len(rest)))
    match draw(st.sampled_from(("delete", "double", "move", "indent", "tabs"))):
        case "delete":
            taken = []
        case "double":
            rest = lines
        case "indent":
            taken, place = [draw(st.sampled_from(("  ", " ", "    "))) + line for line in taken], first
        case "tabs":
            taken, place = ["\t" + line for line in taken], first
    return "".join([*rest[:place], *taken, *rest[place:]])


def line_added(draw: st.DrawFn, text: str) -> str:
    lines = text.splitlines(keepends=True)
    place = draw(st.integers(0, len(lines)))
    key, value = draw(st.sampled_from(SCALARS)), draw(st.sampled_from((*SCALARS, BOMB)))
    added = draw(st.sampled_from((f"{key}: {value}\n", f"  {key}: {value}\n", f"- {value}\n", f"{key}\n", BOMB)))
    return "".join([*lines[:place], added, *lines[place:]])


def tree_changed(draw: st.DrawFn, text: str) -> str:
    """A value of the parsed study made another, or its key renamed, wherever it lies."""
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except Exception:  # an earlier mutation broke it
        return token_replaced(draw, text)
    node = tree
    while isinstance(node, dict | list) and node:
        key = draw(st.sampled_from(sorted(node, key=str) if isinstance(node, dict) else range(len(node))))
        inner = node[key]
        if not isinstance(inner, dict | list) or draw(st.booleans()):
            match draw(st.sampled_from(("value", "rename", "delete"))):
                case "rename" if isinstance(node, dict):
                    node[draw(st.sampled_from((*SCALARS[:20], "name", "factors", "search", "set")))] = node.pop(key)
                case "delete":
                    del node[key]
                case _:
                    node[key] = draw(VALUES)
            break
        node = inner
    written, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    yaml.allow_unicode = draw(st.booleans())
    yaml.dump(tree, written)
    return written.getvalue()


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MUTATIONS = (token_replaced, lines_moved, line_added, tree_changed, tree_changed, tree_changed, tree_changed)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "study.yaml"


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """A trainer flushes them to 0 in its whole thread, and hypothesis draws them."""
    torch.set_flush_denormal(False)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(content=mutated())
def test_a_mutated_study_is_a_located_error_or_a_plan_that_can_be_run(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        study = read_study(path)
        cells = study.with_all_trials().cells()
    except StudyError as error:
        assert error.messages
        for message in error.messages:
            assert re.match(rf"{re.escape(str(path))}(:[1-9]\d*:[1-9]\d*)?: \S", message), message
            assert message.isprintable() and len(message) < 1500
        return
    finally:
        assert not list(Path().glob("RAN")), "a tag ran a command"
    plan = json.loads(json.dumps(study.plan(), allow_nan=False))
    assert [variant["name"] for variant in plan["variants"]] == [variant.name for variant in study.variants()]
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        assert Cell.from_json(cell.to_json()) == cell
        assert_harmless(cell)


def assert_harmless(cell: Cell) -> None:
    """Its names are parts of paths below `runs`, and end no string of MLflow's filters."""
    directory = cell.directory(Path("/lab/runs"))
    assert directory.parts[:3] == ("/", "lab", "runs") and len(directory.parts) == 6
    for name in (cell.study, cell.variant, cell.baseline, *cell.factors, *cell.factors.values()):
        assert re.fullmatch(r"[A-Za-z0-9_.+-]{1,200}", name) and not name.startswith(".")
