"""`python -m ablations.run` with training processes that note where their time goes."""

import sys

from benchmarks.timed_trainer import TimedTrainer

from ablations.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], trainer=TimedTrainer))
