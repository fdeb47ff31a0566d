"""The command `ctf` as `python -m ctf.cli`, the form that torchrun needs."""

import sys

from ctf.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
