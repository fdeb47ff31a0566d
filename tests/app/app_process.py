"""A server in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager


def heed_interrupts():
    """Ctrl-C ends a process that a shell started in the background too, where it is ignored otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(folder, *arguments):
    """`ctf app` in a process whose working, home and temporary folders are new ones in `folder`; gives its address."""
    places = {name: folder / name for name in ("work", "home", "temporary")}
    for place in places.values():
        place.mkdir()
    environment = {**os.environ, "HOME": str(places["home"]), "TMPDIR": str(places["temporary"])}
    command = [sys.executable, "-m", "ctf.cli", "app", "--device", "cpu", "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "text": True, "preexec_fn": heed_interrupts}
    with subprocess.Popen(command, cwd=places["work"], env=environment, **pipes) as process:
        try:
            assert process.stdout.readline().startswith("Loading ")
            line = next(line for line in process.stdout if "http" in line)
            yield re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            assert process.poll() is None, "the server has ended"
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(20)
        assert code == 130, code  # as every command that Ctrl-C ends
