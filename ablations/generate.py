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

from ablations.preflight import check_store, sqlite_path
from ablations.tracking import open_client
from sagan.generate import add_picture, picture_options, write_grid
from sagan.options import Parser, escape_what_cannot_be_printed
from sagan.run_folder import GENERATOR


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written; 2 bad input, with one line on stderr and nothing written."""
    escape_what_cannot_be_printed()
    parser = Parser(prog="python -m ablations.generate", description="Pictures from the generator of a cell.")
    parser.add_argument("run_id", metavar="RUN_ID", help="of a cell in the MLflow store")
    add_picture(parser)
    parser.add_argument(
        "--tracking-uri", default="sqlite:///mlflow.db", metavar="URI", help="the MLflow store (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        picture = picture_options(options)
        with tempfile.TemporaryDirectory() as folder:
            print(write_grid(_fetched(options.run_id, options.tracking_uri, folder), **picture))
    except (ValueError, OSError) as error:
        print(f"ablations.generate: {error}", file=sys.stderr)
        return 2
    return 0


def _fetched(run_id: str, uri: str, folder: str) -> Path:
    """The generator of a run, or of the run that a copy was made from, downloaded to `folder`. Raises ValueError."""
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise ValueError(
            f"RUN_ID: must be the 32 hexadecimal digits of a run, got {run_id!r}; `mlflow ui` shows them; of a file "
            f"python -m sagan.generate draws"
        )
    try:
        check_store(uri)
    except ValueError as error:
        raise ValueError(f"--tracking-uri: {error}") from None
    database = sqlite_path(uri)
    if database is not None and not database.is_file():  # MLflow would make it
        raise ValueError(f"--tracking-uri: must be a store that exists, got {uri!r}; go to the folder of its mlflow.db")
    try:
        client = open_client(uri)
        tags = client.get_run(run_id).data.tags
    except Exception as error:  # MLflow's own, or what its connection raises
        raise ValueError(f"RUN_ID: must be a run of the store {uri}, got {run_id} ({_first_line(error)})") from None
    try:
        return Path(client.download_artifacts(tags.get("shared_run", run_id), GENERATOR, folder))
    except Exception as error:
        raise ValueError(
            f"RUN_ID: must be a cell that was trained to its last step, got {run_id}, of which no {GENERATOR} can be "
            f"had ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    sys.exit(main())
