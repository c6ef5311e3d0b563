"""Pictures from the generator of a cell: `python -m ablations.generate RUN_ID --n 64 --out grid.png`.

RUN_ID is the id of a cell's run in the MLflow store, as `mlflow ui` shows it. A cell that was copied from another study
is drawn with the generator of the run that was trained.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ablations.preflight import DEFAULT_STORE, absolute, check_store, sqlite_path, tracking_uri, without_password
from ablations.tracking.store import Store, first_line
from sagan.generate import add_picture, picture_options, write_grid
from sagan.options import Parser, escape_unprintable_output
from sagan.run_folder import GENERATOR


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written; 2 bad input, with one line on stderr and nothing written."""
    escape_unprintable_output()
    parser = Parser(prog="python -m ablations.generate", description="Pictures from the generator of a cell.")
    parser.add_argument("run_id", metavar="RUN_ID", help="of a cell in the MLflow store")
    add_picture(parser)
    store = f"the MLflow store (default: MLFLOW_TRACKING_URI, else {DEFAULT_STORE})"
    parser.add_argument("--tracking-uri", metavar="URI", help=store)
    options = parser.parse_args(arguments)
    try:
        picture = picture_options(options)
        with tempfile.TemporaryDirectory() as folder:
            print(write_grid(_fetched(options.run_id, options.tracking_uri, folder), **picture))
    except (ValueError, OSError) as error:
        print(f"ablations.generate: {error}", file=sys.stderr)
        return 2
    return 0


def _fetched(run_id: str, given: str | None, folder: str) -> Path:
    """The generator of a run, or of the run that a copy was made from, downloaded to `folder`. Raises ValueError."""
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise ValueError(
            f"RUN_ID: must be the 32 hexadecimal digits of a run, got {run_id!r}; copy them from `mlflow ui`, or "
            f"draw from a generator file with python -m sagan.generate"
        )
    name, uri = tracking_uri(given)
    database = sqlite_path(uri)
    try:
        check_store(uri, will_write=False)
        if database is not None and not database.is_file():  # MLflow would make it
            raise ValueError(f"must be a store that exists, got {uri!r}; go to the folder of its mlflow.db")
        store = Store(absolute(uri), read_only=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        tags = store.client.get_run(run_id).data.tags
    except Exception as error:  # MLflow's own, or what its connection raises
        reason = first_line(error)
        where = without_password(uri)
        raise ValueError(f"RUN_ID: must be a run of the store {where}, got {run_id} ({reason})") from None
    try:
        return store.fetch(tags.get("shared_run", run_id), GENERATOR, Path(folder))
    except Exception as error:
        raise ValueError(
            f"RUN_ID: must be a cell that was trained to its last step, got {run_id}, whose {GENERATOR} cannot be "
            f"loaded ({first_line(error)})"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
