"""Claims cells until none waits, writing each to a log: claimer.py STORAGE STUDY.yaml LOG."""

import sys
import time
from pathlib import Path

from ablations.queue import CellQueue, LauncherProcess
from ablations.study import read_study

if __name__ == "__main__":
    url, study_file, log = sys.argv[1:]
    study = read_study(Path(study_file))
    queue = CellQueue(url, study.name, study.cells())
    while claim := queue.claim(LauncherProcess.here()):
        with open(log, "a") as file:
            file.write(f"{claim.cell.name}\n")
        assert not queue.beat({claim: {"step": 1}})
        time.sleep(0.01)
        queue.complete(claim, "finished")
