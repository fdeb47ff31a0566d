"""The command `ctf`: the table of verbs. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import warnings

from ctf.commands.parser import Verbs, dispatch
from ctf.errors import InputError

#: `ctf train coarse` is the function `coarse` of `ctf.commands.train`, `ctf demo` the function `demo` of its own file.
VERBS: Verbs = {
    "demo": (),
    "fit": (),
    "tokenize": (),
    "cluster": (),
    "train": ("tokenizer", "baseline", "coarse", "fine", "stage"),
    "assemble": (),
    "push": (),
    "sample": (),
    "complete": (),
    "evaluate": ("tokenizer", "likelihood", "samples", "neighbours", "swap"),
    "bench": ("sampling", "training"),
    "plan": (),
    "reproduce": (),
    "convert": ("llamagen", "var", "codes", "tokens", "to-codes", "half"),
    "app": (),
    "info": (),
}

#: Options that `--help` shows for a verb or for the verbs of a group; `--help-all` shows all.
ESSENTIALS = {
    "tokenize": "images split image_size tokenizer augmentation device",
    "cluster": "codebook num_clusters method seed",
    "train": "images held_out image_size coarse_map name predicts given kind size tokenizer start_from "
    "loop.steps loop.epochs loop.batch_size loop.seed loop.precision loop.device loop.resume optimizer.learning_rate",
    "sample": "model labels num seed sampling device",
    "complete": "image labels mask region model num seed sampling device",
    "evaluate": "model tokens samples reference held_out images split splits tokenizer features lpips region against "
    "num device",
    "bench": "sizes systems stages batch_sizes batch_size dtype quantize device out",
    "plan": "gpu gpus stages num_clusters price",
    "reproduce": "preset dry_run look device",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    # Large pages for large tensors: decoding reads all weights at every step, and is 5 % faster for it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_: f"ctf: warning: {message}\n"
    try:
        dispatch(VERBS, ESSENTIALS, sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return 0
    except InputError as error:
        return _fail(str(error))
    except SystemExit as end:  # --help and --print_config
        return int(end.code or 0)
    except BrokenPipeError:  # of `ctf … | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return _fail(f"{place}{error.strerror or error}{': free some space and run it again' if full else ''}")
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or "MemoryError").splitlines()[0]
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate", reason):
            raise
        return _fail(f"not enough memory ({reason}): take a smaller batch or model")
    except KeyboardInterrupt:
        print("ctf: stopped", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"ctf: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
