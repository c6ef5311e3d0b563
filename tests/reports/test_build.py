from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_studies
import pytest
from made_studies import make_results

from reports.build import FORMATS, folder_names, main, write_study
from reports.sections.cells import progress


@pytest.fixture(scope="module")
def built(store: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    assert main(["--tracking-uri", store.uri, "--out", str(out), "--format", "html,md,tex,csv,png"]) == 0
    return out


@pytest.fixture
def page(built: Path) -> str:
    """Without its pictures."""
    text = (built / "attention_position" / "index.html").read_text(encoding="utf-8")
    return re.sub(r"data:image/png;base64,[^\"]*", "data:", text)


def test_a_half_finished_study_gets_every_file(built: Path) -> None:
    folder = built / "attention_position"
    files = "index.html", "table.md", "table.tex", "table.csv", "results.csv", "report.json"
    assert all((folder / name).is_file() for name in files)
    figures = {
        "seeds", "differences", "curve_fid", "curve_is", "curve_class_consistency", "samples_none", "samples_feat32",
        "attention_feat32_g32", "gamma", "entropy", "geometry_texture", "classes",
    }  # fmt: skip
    assert figures <= {path.stem for path in (folder / "figures").iterdir()}
    assert not [path for path in built.iterdir() if path.name.startswith(".")]


def test_the_page_shows_unfinished_collapsed_and_impossible_cells_as_such(page: str) -> None:
    assert "So far (11 of 12 cells)" in page
    for text in ("needs 128 px", "collapsed at 420 of 1,000", "running at 600 of 1,000", "1 collapsed at step 420"):
        assert text in page
    assert not re.search(r"e\+308|\bnan\b|\bNone\b", page)


def test_pages_ask_nobody_for_anything(built: Path, page: str) -> None:
    for text in (page, (built / "index.html").read_text(encoding="utf-8")):
        assert not re.search(r"(src|href)=\"(?!data:|#|\.\./index\.html|[\w.@+=,%-]+(/index\.html)?\")", text)
        assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text) and "<script" not in text


def test_the_command_that_builds_a_page_again_names_its_store_and_quotes_its_study(
    page: str, store: Any, tmp_path: Path
) -> None:
    assert f"<code>python -m reports.build --study attention_position --tracking-uri {store.uri}</code>" in page
    write_study(make_results({"none": {0: 1.0}}, study="a; b"), tmp_path / "s", frozenset({"html"}))
    again = (tmp_path / "s" / "index.html").read_text(encoding="utf-8")
    assert "<code>python -m reports.build --study &#39;a; b&#39;</code>" in again


def test_the_files_at_the_foot_of_a_page_are_named_on_lines_of_their_own(page: str) -> None:
    lines = re.findall(r"<p>(.*?)</p>", page[page.index("<footer>") :])
    files = [re.findall(r"href=\"(.*?)\"", line) for line in lines]
    assert files == [[], ["results.csv", "table.csv"], ["table.md"], ["table.tex"]]
    assert re.sub(r"<p>.*?</p>|</?\w+>|\s", "", page[page.index("<footer>") :]) == ""  # nothing stands outside them


def test_each_protocol_has_a_folder_of_its_own() -> None:
    results = make_results({"none": {0: 1.0}})
    shorter = replace(results, protocol="embedded + optim.steps=500")
    loaded = [shorter, results, replace(results, protocol="imagenet128", preset="imagenet128"),
             replace(results, protocol="embedded + optim.steps:500")]  # fmt: skip
    names = folder_names(loaded)
    assert names[:3] == ["attention_position@embedded-+-optim.steps=500", "attention_position",
                         "attention_position@imagenet128"]  # fmt: skip
    assert len(set(names)) == 4
    assert folder_names([shorter]) == ["attention_position"]


def test_a_study_measured_in_two_ways_gets_two_sets_of_tables(tmp_path: Path) -> None:
    results = make_results({"none": {0: 1.0, 1: 2.0}, "feat32": {0: 900.0, 1: 901.0}})
    prints = results.cells["metric_fingerprint"].mask(
        results.cells["variant"] == "feat32", "inception-v3@ff; 5 samples"
    )
    results = replace(results, cells=results.cells.assign(metric_fingerprint=prints))
    write_study(results, tmp_path / "s", frozenset({"md", "png"}))
    first, second = (tmp_path / "s" / "table.md").read_text(encoding="utf-8").split("### Table 1, with our numbers")[1:]
    assert "900" not in first and "1.50" not in second
    assert "| FD embedded-v1 ↓ |" in first and "| FID ↓ |" in second
    assert {path.name for path in (tmp_path / "s" / "figures").glob("seeds*.png")} == {"seeds.png", "seeds-2.png"}


@pytest.mark.parametrize("states", ["missing", "failed"])
def test_a_study_with_no_result_gets_its_page_all_the_same(tmp_path: Path, states: str) -> None:
    results = make_results({"none": {0: 1.0}, "feat64": {}}, states={("none", 0): states},
                     build_errors={"feat64": "needs 128 px"})  # fmt: skip
    entry = write_study(results, tmp_path / "s", frozenset(FORMATS))
    assert entry["headline"] == "No result yet: 0 of 1 cells are done."
    assert states in (tmp_path / "s" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "reports.build: no MLflow store at mlflow.db: start a study here"),
        (["--tracking-uri", "STORE", "--study", "attention_positon"], "did you mean 'attention_position'"),
        (["--format", "html,docx"], "--format: must be a list of html, md, tex, csv, png, pdf, got docx"),
    ],
)
def test_bad_options_are_one_message_and_status_2_with_nothing_written(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([store.uri if argument == "STORE" else argument for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ours_is_never_replaced(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "attention_position").mkdir()
    (tmp_path / "attention_position" / "thesis.tex").write_text("years of work")
    assert main(["--tracking-uri", store.uri, "--out", str(tmp_path), "--format", "csv"]) == 2
    assert "is no report of ours" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "attention_position").iterdir()] == ["thesis.tex"]


def test_building_again_replaces_the_folder_whole(store: Any, tmp_path: Path) -> None:
    for formats in ("md", "csv"):
        assert main(["--tracking-uri", store.uri, "--out", str(tmp_path), "--format", formats]) == 0
    names = {path.name for path in (tmp_path / "attention_position").iterdir()}
    assert names == {"table.csv", "results.csv", "report.json"}


def test_building_one_study_keeps_the_others_in_the_gallery(fake: Any, tmp_path: Path) -> None:
    for study in ("first", "second"):
        fake.launch(study, ("none", "feat8"), (0,), question=f"What of the {study}?")
        for variant, fid in (("none", 9.0), ("feat8", 8.0)):
            fake.cell(study, variant, 0, [("fid", fid, 100)])
    arguments = ["--tracking-uri", fake.uri, "--out", str(tmp_path), "--format", "html,png"]
    assert main(arguments) == 0
    assert main([*arguments, "--study", "second"]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for study in ("first", "second"):
        assert f'<a href="{study}/index.html">What of the {study}?</a>' in page
    assert page.count("feat8 is 11 % below none on one seed") == page.count("data:image/png") == 2


def test_the_users_settings_of_matplotlib_change_no_figure(built: Path, store: Any, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: black\ntext.color: white\n"
                                           "figure.subplot.left: 0.4\nfont.family: no such font\n")  # fmt: skip
    surroundings = {**os.environ, "MPLBACKEND": "module://no.such.backend", "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, "-m", "reports.build", "--tracking-uri", store.uri, "--out", str(tmp_path / "out")]
    subprocess.run([*command, "--format", "png"], env=surroundings, check=True)
    theirs, ours = (folder / "attention_position" / "figures" for folder in (tmp_path / "out", built))
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == {
        path.name: path.read_bytes() for path in ours.iterdir()
    }


def test_the_gallery_tells_trials_from_what_confirms_them() -> None:
    found = progress(made_studies.search())
    assert found == "11 of 12 trials done; to confirm the best, 6 of 6 cells done: 6 finished"


def test_help_answers_without_loading_the_scientific_stack() -> None:
    code = """import sys, reports.build as b
try:
    b.main(["--help"])
finally:
    assert not {"pandas", "matplotlib", "numpy"} & sys.modules.keys()"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "MLFLOW_TRACKING_URI, else sqlite:///mlflow.db" in " ".join(said.split())


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = [390, 1100, 1200]


PROBE = """<script>
  const name = NAME, errors = [];
  addEventListener("error", event => errors.push(event.message), true);
  addEventListener("load", () => {
    const page = document.documentElement, all = [...document.querySelectorAll("body *")];
    const name_of = element => element.tagName + " " + element.textContent.trim().slice(0, 30);
    const cut = element => {
      const hides = ["hidden", "clip"].includes(getComputedStyle(element).overflowX);
      const fits = !element.clientWidth || element.scrollWidth <= element.clientWidth + 1;
      return !fits && (hides || ["TD", "TH"].includes(element.tagName));
    };
    parent.postMessage({name, errors, width: page.clientWidth, scroll_width: page.scrollWidth,
      pictures: document.images.length,
      broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.alt),
      wide: all.filter(element => !element.closest(".scroll")
        && element.getBoundingClientRect().right > page.clientWidth + 1).map(name_of),
      cut: all.filter(cut).map(name_of),
      sideways: all.filter(element => element.className === "scroll"
        && element.scrollWidth > element.clientWidth + 1).map(element => element.ariaLabel)}, "*");
  });
</script>"""
FRAMES = """<p id="found"></p>
<script>const found = [];
  addEventListener("message", event => {
    found.push(event.data);
    document.getElementById("found").textContent = JSON.stringify(found);
  });
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_nothing_fails_scrolls_sideways_is_cut_or_missing(built: Path, tmp_path: Path) -> None:
    """The pages of the test store and one of each kind of study, each 390, 1100 and 1200 px wide."""
    for make in made_studies.ALL:
        write_study(make(), tmp_path / make.__name__, frozenset({"html"}))
    every_page = [*built.rglob("*.html"), *tmp_path.rglob("*.html")]
    # A window cannot be 390 px narrow, a frame in it can; each page tells the window what it measured of itself.
    frames = FRAMES
    for number, path in enumerate(every_page):
        probe = PROBE.replace("NAME", json.dumps(f"{path.parent.name}/{path.name}"))
        page = path.read_text(encoding="utf-8").replace("<head>", f"<head>{probe}")
        (tmp_path / f"{number}.html").write_text(page, encoding="utf-8")
        for width in WIDTHS:
            frames += f'<iframe src="{number}.html" style="width:{width}px;height:800px;border:0"></iframe>'
    (tmp_path / "frames.html").write_text(frames, encoding="utf-8")
    assert CHROMIUM is not None
    browser = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    match = re.search(r'<p id="found">(.+?)</p>', browser.stdout)
    assert match is not None, browser.stdout[-500:]
    found = json.loads(html.unescape(match.group(1)))
    assert sorted(page["width"] for page in found) == sorted(WIDTHS * len(every_page))
    for page in found:
        assert page["scroll_width"] == page["width"], page
        assert not (page["errors"] or page["broken"] or page["wide"] or page["cut"]), page
        assert page["pictures"] >= 1, page
        assert page["width"] < 1100 or "Scores" not in page["sideways"], page
    assert "CONSOLE" not in browser.stderr
