"""`python -m ablations.worker` with the trainer that trains nothing."""

import sys

from fake_host import pretend
from fake_trainer import FakeTrainer

from ablations import worker

if __name__ == "__main__":
    pretend()
    sys.exit(worker.main(sys.argv[1:], trainer=FakeTrainer))
