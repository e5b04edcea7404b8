"""`python -m dimdata`: the command line of the interpreter at hand."""

import sys

from dimdata.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
