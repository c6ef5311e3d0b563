"""`python -m ablations.run` with workers that train nothing."""

import sys
from pathlib import Path

from fake_host import pretend

from ablations.run import main

if __name__ == "__main__":
    pretend()
    sys.exit(main(sys.argv[1:], program=(sys.executable, str(Path(__file__).with_name("fake_worker.py")))))
