"""`python -m ablations.run` with training processes that train nothing."""

import sys

from fake_host import pretend
from fake_trainer import FakeTrainer

from ablations.run import main

if __name__ == "__main__":
    pretend()
    sys.exit(main(sys.argv[1:], trainer=FakeTrainer))
