"""The wheels that a machine without a network lacks: `python tests/gpu/collect_wheels.py FOLDER`.

Run it in an environment that holds what that machine holds, with its versions (README.md): what pip would install
beside the project there is downloaded to FOLDER, each wheel with its size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def missing() -> list[str]:
    """name==version of everything that the project needs and this environment lacks."""
    report = subprocess.run(
        [*PIP, "install", "--dry-run", "--report", "-", str(ROOT)], check=True, stdout=subprocess.PIPE
    ).stdout
    packages = [item["metadata"] for item in json.loads(report)["install"]]
    return [f"{package['name']}=={package['version']}" for package in packages if package["name"] != "sagan-ablations"]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python tests/gpu/collect_wheels.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    packages = missing()
    if not packages:
        print("nothing is missing here")
        return 0
    download = (*PIP, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder))
    subprocess.run([*download, *packages], check=True)
    wheels = sorted(folder.glob("*.whl"), key=lambda wheel: wheel.stat().st_size)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:6.2f} MiB  {len(wheels)} wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
