"""`python -m ablations.run` with workers that note where their time goes."""

import sys
from pathlib import Path

from ablations.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program=(sys.executable, str(Path(__file__).with_name("timed_worker.py")))))
