"""From the MLflow store to pages, tables and figures: `python -m reports.build`."""

from __future__ import annotations

import argparse
import base64
import difflib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FORMATS = ("html", "md", "tex", "csv", "png", "pdf")
# The order of a page. A table or figure of a section that is not named here comes at the end.
SECTIONS = ("Answer", "Search", "Variants", "Training curves", "Samples", "Attention", "Geometry against texture",
            "Inside the networks", "Every metric", "Cells")  # fmt: skip
MARK = "report.json"  # says of a folder that it is ours to replace
GALLERY = "index.html"
THUMBNAIL = "seeds"  # the figure that the gallery shows


@dataclass(frozen=True)
class Panel:
    """A drawn figure, ready to be written or inlined."""

    name: str
    caption: str
    png: bytes
    pdf: bytes | None

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 built; 2 bad input, with one line on stderr and nothing written."""
    options = _parser().parse_args(arguments)
    try:
        formats = _formats(options.format)
        index = build(options.tracking_uri, Path(options.out), options.study, formats)
    except (ValueError, OSError) as error:
        print(f"reports.build: {error}", file=sys.stderr)
        return 2
    print(f"wrote {index}")
    return 0


def build(tracking_uri: str | None, out: Path, study: str | None, formats: frozenset[str]) -> Path:
    """Writes `out`, one folder a study, and returns its index page. Each folder is replaced whole, or not at all."""
    from reports.store import Store
    from reports.unit import load_units

    store = Store(tracking_uri)
    units = load_units(store)
    if not units:
        hint = "start one with `python -m ablations.run STUDY.yaml`"
        raise ValueError(f"the store {store.shown_uri} has no study: {hint}")
    names = list(dict.fromkeys(unit.study for unit in units))
    if study is not None and study not in names:
        close = difflib.get_close_matches(study, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"--study: no study {study!r} in {store.shown_uri}; {hint}")
    folders = dict(zip(folder_names(units), units, strict=True))
    chosen = [folder for folder, unit in folders.items() if study in (None, unit.study)]
    for folder in chosen:
        _check_ours(out / folder)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=out) as scratch:
        # The gallery shows every study of the store, also one that is not built this time.
        written = _write_units({folder: folders[folder] for folder in chosen}, Path(scratch), formats)
        entries = [
            {"folder": folder} | (written[folder] if folder in written else _built(unit, out / folder))
            for folder, unit in folders.items()
        ]
        page = Path(scratch) / GALLERY
        page.write_text(_render(GALLERY, entries=entries, store=store.shown_uri, now=_now()), encoding="utf-8")
        for folder in chosen:
            _replace(Path(scratch) / folder, out / folder)
        os.replace(page, out / GALLERY)
    return out / GALLERY


def _write_units(units: dict[str, Any], scratch: Path, formats: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Each unit into its folder of `scratch`, one per core at a time: drawing the figures is what takes long."""
    processes = min(len(units), os.cpu_count() or 1)
    work = units.values(), [scratch / folder for folder in units], repeat(formats)
    if processes < 2:
        return dict(zip(units, map(write_unit, *work), strict=True))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return dict(zip(units, pool.map(write_unit, *work), strict=True))


def folder_names(units: Sequence[Any]) -> list[str]:
    """`study` for its plain preset, or its first protocol where it has none; `study@protocol` for the others."""
    plain: dict[str, Any] = {}
    for unit in sorted(units, key=lambda unit: unit.protocol != unit.preset):
        plain.setdefault(unit.study, unit)
    names: list[str] = []
    for unit in units:
        name = _slug(unit.study) if plain[unit.study] is unit else f"{_slug(unit.study)}@{_slug(unit.protocol)}"
        taken = name in (GALLERY, *names)
        names.append(f"{name}-{_hash(unit.study + unit.protocol)}" if taken else name)
    return names


def write_unit(unit: Any, folder: Path, formats: frozenset[str]) -> dict[str, Any]:
    """One study at one protocol, into a new folder; returns what the gallery shows of it."""
    import pandas as pd

    from reports import summary, writers
    from reports.measures import by_measure

    parts = [_part(part, number, formats) for number, part in enumerate(by_measure(unit), 1)]
    folder.mkdir(parents=True)
    tables = [table for part in parts for section in part["sections"] for table in section["tables"]]
    panels = [panel for part in parts for section in part["sections"] for panel in section["panels"]]
    if "md" in formats:
        text = "\n".join(writers.markdown(table) for table in tables)
        heading = f"# {writers.escape_markdown(unit.study)} ({writers.escape_markdown(unit.protocol)})"
        question = writers.escape_markdown(unit.question)
        answer = f"**{writers.escape_markdown(parts[0]['headline'])}**"
        if parts[0]["seen"]:
            answer += f"\n\n{writers.escape_markdown(parts[0]['seen'])}"
        (folder / "table.md").write_text(f"{heading}\n\n{question}\n\n{answer}\n\n{text}", encoding="utf-8")
    if "tex" in formats:
        text = "\n".join(writers.latex(table) for table in tables)
        (folder / "table.tex").write_text(f"% needs \\usepackage{{booktabs}}\n{text}", encoding="utf-8")
    if "csv" in formats:
        pd.concat([summary.tidy(part["unit"]) for part in parts]).to_csv(folder / "table.csv", index=False)
        scores = unit.finals.rename(columns={key: f"{key} (metric)" for key in unit.finals if key in unit.cells})
        unit.cells.join(scores).to_csv(folder / "results.csv", index=False)
    if formats & {"png", "pdf"}:
        (folder / "figures").mkdir()
    for panel in panels:
        if "png" in formats:
            (folder / "figures" / f"{panel.name}.png").write_bytes(panel.png)
        if panel.pdf is not None:
            (folder / "figures" / f"{panel.name}.pdf").write_bytes(panel.pdf)
    entry = {**_entry(unit, parts[0]["headline"]), "built": _now()}
    (folder / MARK).write_text(json.dumps(entry, indent=1, ensure_ascii=False), encoding="utf-8")
    if "html" in formats:
        page = _render("study.html", unit=unit, parts=parts, provenance=_provenance(unit), formats=formats, **entry)
        (folder / "index.html").write_text(page, encoding="utf-8")
    thumbnail = next((panel for panel in panels if panel.name == THUMBNAIL), None)
    return {**entry, "thumbnail": thumbnail, "linked": "html" in formats}


def _built(unit: Any, folder: Path) -> dict[str, Any]:
    """What the gallery shows of a study that is left as it is: its answer as of now, its page where there is one."""
    from reports.measures import by_measure
    from reports.summary import headline

    figure, page = folder / "figures" / f"{THUMBNAIL}.png", folder / "index.html"
    drawn = Panel(THUMBNAIL, "as last built", figure.read_bytes(), None) if figure.is_file() else None
    return {
        **_entry(unit, headline(by_measure(unit)[0])),
        "thumbnail": drawn,
        "linked": page.is_file() and (folder / MARK).is_file(),
    }


def _entry(unit: Any, headline: str) -> dict[str, Any]:
    return {
        "study": unit.study,
        "protocol": unit.protocol,
        "question": unit.question,
        "state": state_of(unit),
        "headline": headline,
    }


def state_of(unit: Any) -> str:
    """ "10 of 12 cells done: 9 finished, 1 collapsed; 1 running, 1 missing; 3 cannot run at this scale"."""
    states = [state for variant in unit.variants if not variant.obstacle
              for state in unit.cells.loc[unit.cells["variant"] == variant.name, "state"]]  # fmt: skip
    ends = ("finished", "collapsed", "diverged")
    counts = {state: states.count(state) for state in (*ends, *sorted(set(states) - set(ends)))}
    listed = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    impossible = sum(variant.obstacle is not None for variant in unit.variants) * len(unit.seeds)
    rest = f"; {impossible} cannot run at this scale" if impossible else ""
    of_search = ""
    if unit.search is not None:
        tried = sum(trial.state != "running" for trial in unit.search.trials)
        of_search = f"{tried} of {len(unit.search.trials)} trials done; to confirm the best, "
    return f"{of_search}{sum(counts[state] for state in ends)} of {len(states)} cells done: {listed}{rest}"


def _part(unit: Any, number: int, formats: frozenset[str]) -> dict[str, Any]:
    """The tables and panels of one measure, by section. Names of the second and later measures end in their number."""
    # These register the tables and figures that they make.
    from reports import classes, designs, paper_tables, pictures, plan_tables, searches, stabilisation, summary  # noqa: F401
    from reports.figures import FIGURES
    from reports.tables import TABLES

    suffix = "" if number == 1 else f"-{number}"
    drawn = formats & {"html", "png", "pdf"}
    order = list(dict.fromkeys([*SECTIONS, *(name for name, _ in [*TABLES, *FIGURES])]))
    sections = [
        {
            "title": title,
            "tables": [table for name, make in TABLES if name == title if (table := make(unit)) is not None],
            "panels": [panel for name, draw in FIGURES if name == title and drawn
                       for panel in _panels(draw, unit, suffix, "pdf" in formats)],
        }
        for title in order
    ]  # fmt: skip
    return {
        "unit": unit,
        "headline": summary.headline(unit),
        "seen": summary.seen(unit),
        "sections": [section for section in sections if section["tables"] or section["panels"]],
    }


def _panels(draw: Any, unit: Any, suffix: str, pdf: bool) -> list[Panel]:
    import matplotlib.pyplot as plt

    from reports import style

    panels: list[Panel] = []
    with style.look():
        for drawn in draw(unit):
            name = _slug(drawn.name)
            if name in [panel.name for panel in panels]:
                name = f"{name}-{_hash(drawn.name)}"
            png, vector = io.BytesIO(), io.BytesIO()
            drawn.figure.savefig(png, format="png", metadata={"Software": None})
            if pdf:
                drawn.figure.set_layout_engine("none")  # it is laid out already; once more costs as much as drawing
                drawn.figure.savefig(vector, format="pdf", metadata={"CreationDate": None})
            plt.close(drawn.figure)
            panels.append(Panel(name + suffix, drawn.caption, png.getvalue(), vector.getvalue() if pdf else None))
    return panels


def _provenance(unit: Any) -> list[tuple[str, str]]:
    """What a reader needs to judge or repeat the numbers."""

    def listed(column: str) -> str:
        return ", ".join(sorted({str(value) for value in unit.cells[column].dropna()})) or "–"

    return [
        ("protocol", unit.protocol),
        ("preset", unit.preset),
        ("primary metric", unit.metric),
        ("baseline", unit.baseline),
        ("seeds", ", ".join(map(str, unit.seeds))),
        ("measured by", listed("metric_fingerprint")),
        ("data", listed("data_fingerprint")),
        ("code", listed("git_commit")),
        ("device", listed("device")),
        ("first launch", datetime.fromtimestamp(unit.launched / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("build this page again", f"python -m reports.build --study {unit.study}"),
    ]


def _render(template: str, **context: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: files("reports").joinpath("templates", name).read_text(encoding="utf-8")
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**context)


def _check_ours(folder: Path) -> None:
    if folder.exists() and not (folder / MARK).is_file():
        raise ValueError(f"--out: {folder} is there and is no report of ours; move it away or choose another --out")


def _replace(new: Path, old: Path) -> None:
    if old.exists():
        shutil.move(old, new.with_name(f".{new.name}"))  # deleted with the scratch folder
    os.replace(new, old)


def _slug(name: str) -> str:
    """Safe as a file name everywhere: no separators, no leading dot, short."""
    safe = re.sub(r"[^A-Za-z0-9._=+,-]+", "-", name).strip(".-") or "study"
    return safe if len(safe) <= 48 else f"{safe[:40]}-{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _formats(text: str) -> frozenset[str]:
    formats = frozenset(item.strip() for item in text.split(",") if item.strip())
    unknown = sorted(formats - set(FORMATS))
    if unknown or not formats:
        raise ValueError(f"--format: must be a list of {', '.join(FORMATS)}, got {', '.join(unknown) or 'nothing'}")
    return formats


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reports.build", description=__doc__)
    parser.add_argument("--study", help="one study; all by default")
    parser.add_argument("--out", default="reports/out", help="folder to write (default: %(default)s)")
    parser.add_argument("--format", default=",".join(FORMATS), help="any of %(default)s")
    parser.add_argument("--tracking-uri", help="the MLflow store (default: sqlite:///mlflow.db in this folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
