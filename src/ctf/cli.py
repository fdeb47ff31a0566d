"""The command as `python -m ctf.cli`: torchrun starts it so."""

import sys

from ctf.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
