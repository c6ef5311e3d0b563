"""From the MLflow store to pages, tables and figures: `python -m reports.build`."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:  # pandas and Matplotlib take a second to import, and --help needs neither
    from reports.results import Results

FORMATS = ("html", "md", "tex", "csv", "png", "pdf")
MARK = "report.json"  # says of a folder that it is ours to replace
GALLERY = "index.html"
THUMBNAIL = "seeds"  # the figure that the gallery shows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 built; 2 bad input, with one line on stderr and nothing written."""
    parser = argparse.ArgumentParser(prog="python -m reports.build", description=__doc__)
    parser.add_argument("--study", help="one study; all by default")
    parser.add_argument("--out", default="reports/out", help="folder to write (default: %(default)s)")
    parser.add_argument("--format", default=",".join(FORMATS), help="any of %(default)s")
    default = "the variable MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder"
    parser.add_argument("--tracking-uri", metavar="URI", help=f"the MLflow store (default: {default})")
    options = parser.parse_args(arguments)
    os.environ["MPLBACKEND"] = "agg"  # before Matplotlib is imported: a notebook's backend need not exist here
    try:
        formats = frozenset(item.strip() for item in options.format.split(",") if item.strip())
        if not formats or formats - set(FORMATS):
            unknown = ", ".join(sorted(formats - set(FORMATS))) or "nothing"
            raise ValueError(f"--format: must be a list of {', '.join(FORMATS)}, got {unknown}")
        index = build(options.tracking_uri, Path(options.out), options.study, formats)
    except (ValueError, OSError) as error:
        say(f"reports.build: {error}", sys.stderr)
        return 2
    say(f"wrote {index}", sys.stdout)
    return 0


def say(text: str, stream: TextIO) -> None:
    """Prints a line; what the encoding of a terminal lacks is a question mark."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream)


def build(tracking_uri: str | None, out: Path, study: str | None, formats: frozenset[str]) -> Path:
    """Writes `out`, one folder per study, and returns its index page. Each folder is replaced completely or not at all.

    Raises ValueError for a store without studies, an unknown `study` and a folder that is no report of ours.
    """
    from reports.frames import check_study
    from reports.loading import load_results
    from reports.store import DEFAULT_URI, Store

    store = Store(tracking_uri)
    loaded = load_results(store)
    check_study(study, dict.fromkeys(results.study for results in loaded), store.shown_uri)
    folders = dict(zip(folder_names(loaded), loaded, strict=True))
    chosen = {folder: results for folder, results in folders.items() if study in (None, results.study)}
    for folder in (out / name for name in chosen):
        if folder.exists() and not (folder / MARK).is_file():
            raise ValueError(f"--out: {folder} is there and is no report of ours; move it away or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=out) as scratch:
        # Drawing the figures is what takes long: one study per core at a time.
        processes = min(len(chosen), os.cpu_count() or 1)
        uri = "" if store.uri == DEFAULT_URI else store.shown_uri
        work = chosen.values(), [Path(scratch) / folder for folder in chosen], repeat(formats), repeat(uri)
        if processes < 2:
            written = dict(zip(chosen, map(write_study, *work), strict=True))
        else:
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                written = dict(zip(chosen, pool.map(write_study, *work), strict=True))
        # The gallery shows every study of the store, also one that is not built this time.
        entries = [
            {"folder": folder} | (written[folder] if folder in written else _as_last_built(results, out / folder))
            for folder, results in folders.items()
        ]
        page = Path(scratch) / GALLERY
        page.write_text(_render(GALLERY, entries=entries, store=store.shown_uri, now=_now()), encoding="utf-8")
        for name in chosen:
            if (out / name).exists():
                shutil.move(out / name, Path(scratch) / f".{name}")  # deleted with the scratch folder
            os.replace(Path(scratch) / name, out / name)
        os.replace(page, out / GALLERY)
    return out / GALLERY


def folder_names(loaded: Sequence[Results]) -> list[str]:
    """`study` for its plain preset, or its first protocol where it has none; `study@protocol` for the others."""
    from reports.page import file_name, short_hash

    plain: dict[str, Results] = {}
    for results in sorted(loaded, key=lambda results: results.protocol != results.preset):
        plain.setdefault(results.study, results)
    names: list[str] = []
    for results in loaded:
        name = file_name(results.study)
        if plain[results.study] is not results:
            name += f"@{file_name(results.protocol)}"
        taken = name in (GALLERY, *names)
        names.append(f"{name}-{short_hash(results.study + results.protocol)}" if taken else name)
    return names


def write_study(results: Results, folder: Path, formats: frozenset[str], uri: str = "") -> dict[str, Any]:
    """One study at one protocol, into a new folder; returns what the gallery shows of it.

    `uri` names the store in the command that builds the page again; "" for the default one.
    """
    from reports import frames, page, writers

    parts = page.parts_of(results, bool(formats & {"html", "png", "pdf"}), "pdf" in formats)
    first = parts[0]
    tables = [table for part in parts for content in part.contents for table in content.tables]
    panels = [panel for part in parts for content in part.contents for panel in content.panels]
    folder.mkdir(parents=True)
    if "md" in formats:
        title = f"{results.study} ({results.protocol})"
        text = writers.markdown_page(title, results.question, first.headline, first.power_statement, tables)
        (folder / "table.md").write_text(text, encoding="utf-8")
    if "tex" in formats:
        text = "\n".join(writers.latex(table) for table in tables)
        (folder / "table.tex").write_text(f"% needs \\usepackage{{booktabs}}\n{text}", encoding="utf-8")
    if "csv" in formats:
        frames.cells(results).to_csv(folder / frames.CELLS, index=False)
        frames.comparisons(results).to_csv(folder / frames.COMPARISONS, index=False)
    if formats & {"png", "pdf"}:
        (folder / "figures").mkdir()
    for panel in panels:
        if "png" in formats:
            (folder / "figures" / f"{panel.name}.png").write_bytes(panel.png)
        if panel.pdf is not None:
            (folder / "figures" / f"{panel.name}.pdf").write_bytes(panel.pdf)
    entry = {**_entry(results, first.headline), "built": _now()}
    (folder / MARK).write_text(json.dumps(entry, indent=1, ensure_ascii=False), encoding="utf-8")
    if "html" in formats:
        text = _render("study.html", parts=parts, provenance=_provenance(results, uri), formats=formats, **entry)
        (folder / "index.html").write_text(text, encoding="utf-8")
    thumbnail = next((panel for panel in panels if panel.name == THUMBNAIL), None)
    return {**entry, "thumbnail": thumbnail, "linked": "html" in formats}


def _as_last_built(results: Results, folder: Path) -> dict[str, Any]:
    """What the gallery shows of a study that is left as it is: its answer as of now, its page where there is one."""
    from reports.page import Panel
    from reports.results import by_measurement
    from reports.sections.answer import headline

    figure, page = folder / "figures" / f"{THUMBNAIL}.png", folder / "index.html"
    return {
        **_entry(results, headline(by_measurement(results)[0])),
        "thumbnail": Panel(THUMBNAIL, "as last built", figure.read_bytes(), None) if figure.is_file() else None,
        "linked": page.is_file() and (folder / MARK).is_file(),
    }


def _entry(results: Results, headline: str) -> dict[str, Any]:
    from reports.sections.cells import progress

    return {
        "study": results.study,
        "protocol": results.protocol,
        "question": results.question,
        "state": progress(results),
        "headline": headline,
    }


def _provenance(results: Results, uri: str) -> list[tuple[str, str]]:
    """What a reader needs to judge or repeat the numbers."""

    def listed(column: str) -> str:
        return ", ".join(sorted({str(value) for value in results.cells[column].dropna()})) or "–"

    command = ["python", "-m", "reports.build", "--study", results.study, *(["--tracking-uri", uri] if uri else [])]
    return [
        ("protocol", results.protocol),
        ("preset", results.preset),
        ("primary metric", results.metric),
        ("baseline", results.baseline),
        ("seeds", ", ".join(map(str, results.seeds))),
        ("measured by", listed("metric_fingerprint")),
        ("data", listed("data_fingerprint")),
        ("code", listed("git_commit")),
        ("device", listed("device")),
        ("first launch", datetime.fromtimestamp(results.launched / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("build this page again", shlex.join(command)),
    ]


def _render(template: str, **context: Any) -> str:
    import jinja2
    from markupsafe import Markup

    def unbroken(text: str) -> Markup:
        """Escaped HTML in which no line ends before a heading's arrow, in "n = 3" or in a short name with a hyphen."""
        parts = re.split(r"(\S{1,24} [↓↑]|n = \d+|\S{1,24}-\S{1,24})", text)  # every second one stays together
        span = Markup('<span class="unbroken">{}</span>')
        return Markup("").join(span.format(part) if place % 2 else part for place, part in enumerate(parts))

    loader, undefined = jinja2.PackageLoader("reports"), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=undefined
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template(template).render(**context)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(main())
