"""Runs full_disk.py, whose tests fill a small file system, in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")


@pytest.mark.slow
def test_a_full_disk_costs_no_result_and_is_told_clearly(tmp_path: Path) -> None:
    mount = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here, not even in a user namespace")
    cases = Path(__file__).with_name("full_disk.py")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "own")]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run([*OWN_MOUNTS, *tests, str(cases)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
