"""``python -m colo.cli``: the command line, where its script is not on PATH."""

import sys

from colo.cli import main

if __name__ == "__main__":
    sys.exit(main())
