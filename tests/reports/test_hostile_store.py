"""A store that somebody else wrote: none of its names went through our study reader, and none may do anything."""

from __future__ import annotations

import html.parser
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_studies import make_results

from reports.build import folder_names, main
from reports.loading import load_results
from reports.store import Store

STUDIES = ("../../evil", "index.html")
NAMES = (
    "none", "../../evil", "/etc/passwd", "a/b", "a-b", "<script>alert(1)</script>", '" onload="alert(1)" x="',
    "\\input{/etc/passwd}", "% _ & $ # ~ ^ { }", "[1000pt]", "*", "two\n\nlines\rand a carriage \x00\x1b[2J",
    "'; drop table runs; --", "{{ 7 * 7 }}", "| a | b |", "$x^2$", "日本 \u202e \U0001f600", "x" * 400,
)  # fmt: skip
EVERYTHING = NAMES[5] + NAMES[6] + NAMES[7] + NAMES[8] + NAMES[11]


@pytest.fixture(scope="module")
def hostile(scratch: Callable[[], Any]) -> Any:
    """Two studies with such names; the first has a variant of each kind."""
    fake = scratch()
    for number, title in enumerate(STUDIES):
        study = f"s{number}"  # where its artifacts lie
        names = NAMES if title == STUDIES[0] else NAMES[:2]
        said = {"question": EVERYTHING, "protocol": EVERYTHING, "preset": EVERYTHING, "paper": EVERYTHING}
        fake.launch(study, names, (0,), **said, factors=[EVERYTHING], design=EVERYTHING)
        for place, name in enumerate(names):
            tags = dict.fromkeys(("data_fingerprint", "git_commit", "device", "shared_run"), EVERYTHING)
            tags |= {"protocol": EVERYTHING, "preset": EVERYTHING, "paper": EVERYTHING, "shared_study": EVERYTHING}
            tags |= {"metric_fingerprint": f"{EVERYTHING}; 5", "tile_px": EVERYTHING, "last_step": "1000"}
            tags |= {"classes": json.dumps([EVERYTHING, "b"]), "groups": json.dumps({EVERYTHING: [0, 9]})}
            points = [("fid", 10.0 + place, 1000), ("loss_g", 1.0, 1000), ("seed", 1.0, 1000)]
            run_id = fake.cell(study, name, 0, points, error=EVERYTHING, **tags)
            if name in ("a/b", "a-b"):
                fake.log_pictures(run_id, 8)
    with sqlite3.connect(fake.folder / "mlflow.db") as connection:
        for number, title in enumerate(STUDIES):
            connection.execute("update tags set value = ? where key = 'study' and value = ?", (title, f"s{number}"))
        # MLflow's client refuses such a key.
        connection.execute("update metrics set key = ? where key = 'loss_g'", (f"fid_class/{EVERYTHING}",))
    return fake


@pytest.fixture(scope="module")
def built(hostile: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`reports/out`, alone in a folder, whose pictures lie there as files too."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)  # in this process
        arguments = ["--tracking-uri", hostile.uri, "--out", str(folder / "reports" / "out")]
        assert main([*arguments, "--format", "html,md,tex,csv,png"]) == 0
    yield folder


def test_every_file_stays_in_the_folder_of_its_study(built: Path) -> None:
    assert [path.name for path in built.iterdir()] == ["reports"]
    out = built / "reports" / "out"
    assert [path.name for path in (built / "reports").iterdir()] == ["out"]
    assert len(list(out.iterdir())) == len(STUDIES) + 1 and (out / "index.html").is_file()
    for folder in (path for path in out.iterdir() if path.is_dir()):
        assert re.fullmatch(r"[A-Za-z0-9_=+,@-][A-Za-z0-9._=+,@-]{0,110}", folder.name)
        inside = {path.name for path in folder.iterdir()}
        assert inside == {"index.html", "table.md", "table.tex", "table.csv", "results.csv", "report.json", "figures"}
        figures = [path.name for path in (folder / "figures").iterdir()]
        assert all(re.fullmatch(r"[A-Za-z0-9._=+,-]{1,70}\.png", name) for name in figures)
        if "evil" in folder.name:
            assert len([name for name in figures if name.startswith("samples_a-b")]) == 2, "one a variant"


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its elements, their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attributes)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text_in_a_page_and_no_elements_nor_attributes(built: Path) -> None:
    for path in filter(Path.is_file, built.rglob("*.html")):
        page = Page(path)
        assert not page.elements & {"script", "iframe", "object", "embed", "form", "base"}
        assert not [name for name in page.attributes if name.startswith("on")]
        assert "<script>alert(1)</script>" in page.text
    (first,) = (built / "reports" / "out").glob("*evil*/index.html")
    text = Page(first).text
    assert not [name for name in NAMES if re.sub(r"[\x00\x1b\r]", "?", name) not in text]


def test_no_name_starts_a_command_or_ends_a_row_in_latex(built: Path) -> None:
    ours = {
        "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "multicolumn", "emph", "textbf",
        "par", "smallskip", "footnotesize", "scriptsize", "setlength", "tabcolsep", "linewidth", "textbackslash",
        "textasciicircum", "textasciitilde", "textbar", "pm", "times", "downarrow", "uparrow", "usepackage",
    }  # fmt: skip
    for path in built.rglob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"\\([A-Za-z]+)", text)) <= ours
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
        assert not re.search(r"\\\\\s*[\[*]", text), "a row that begins with [ or * is an argument of the one before"
        body = re.sub(r"\\[{}%_&$#\\]|^% needs.*$", "", text, flags=re.M)
        assert "%" not in body and "#" not in body and "^" not in body and "~" not in body
        assert body.count("{") == body.count("}")


def test_no_name_ends_a_cell_or_starts_html_in_markdown(built: Path) -> None:
    for path in built.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<!\\)<", text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
        for lines in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


def test_folders_of_any_studies_are_different_names_below_out() -> None:
    names = (*STUDIES, *NAMES, "", "...", "-", "a b", "a:b", "con\n.", "y" * 47, "x" * 399)
    loaded = [
        replace(make_results({"none": {}}), study=name, protocol=other) for name in names for other in (name, "p")
    ]
    folders = folder_names(loaded)
    assert len(set(folders)) == len(loaded)
    assert all(re.fullmatch(r"[A-Za-z0-9_=+,@-][A-Za-z0-9._=+,@-]{0,110}", folder) for folder in folders)


def test_a_document_that_is_none_of_ours_counts_as_absent(fake: Any) -> None:
    contents = ('{"variants": [{"na', "[1]", '"x"', '{"variants": 3, "seeds": [0]}', '{"variants": [3], "seeds": [0]}',
                '{"variants": [], "seeds": ["a"]}', "\udcff", '{"variants": [{"name": 3}], "seeds": [0]}')  # fmt: skip
    for content in contents:
        launch = fake.launch("s", ("none",), (0,))
        path = fake.folder / "mlruns" / "s" / launch / "artifacts" / "plan.json"
        path.write_bytes(content.encode(errors="surrogateescape"))
        path.with_name("search.json").write_bytes(content.encode(errors="surrogateescape"))
    fake.cell("s", "feat8", 3, [("fid", 1.0, 5)])
    (results,) = load_results(Store(fake.uri))
    assert [variant.name for variant in results.variants] == ["feat8"] and results.seeds == (3,)
    assert results.search is None


def test_half_a_character_in_a_plan_and_what_older_versions_did_not_write_do_no_harm(fake: Any, tmp_path: Path) -> None:
    fake.launch("s", ("none", "feat8"), (0,), question="What is \ud800?")
    for variant in ("none", "feat8", "gone"):
        fake.cell("s", variant, 0, [("fid", 9.0, 5)])
    lone = fake.launch("lone", ("none",), (0,))
    (fake.folder / "mlruns" / "lone" / lone / "artifacts" / "plan.json").unlink()
    with sqlite3.connect(fake.folder / "mlflow.db") as connection:
        kept = ("kind", "study", "variant", "seed", "outcome", "config_digest", "mlflow.runName")
        connection.execute(f"delete from tags where key not in {kept}")
        connection.execute("delete from tags where key in ('variant', 'seed') and run_uuid in "
                           "(select run_uuid from tags where value = 'gone')")  # fmt: skip
        connection.execute("delete from params")
    assert main(["--tracking-uri", fake.uri, "--out", str(tmp_path), "--format", "html,md,tex,csv"]) == 0
    page = Page(tmp_path / "s" / "index.html").text
    assert "What is ??" in page
    assert "Left out, because their tags name no variant or no seed: 1 of the runs." in page
    assert "feat8 is" in page and "2 of 2 cells done" in page


def test_tables_of_another_mlflow_are_one_message(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.cell("s", "none", 0, [("fid", 9.0, 5)])
    for table, old, new in (("metrics", "is_nan", "no_number"), ("runs", "artifact_uri", "uri")):
        with sqlite3.connect(fake.folder / "mlflow.db") as connection:
            connection.execute(f"alter table {table} rename column {old} to {new}")
        assert main(["--tracking-uri", fake.uri, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "no such column" in said and "run `mlflow db upgrade`" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
