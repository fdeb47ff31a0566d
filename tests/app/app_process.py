"""A server in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def running(folder, *arguments):
    """`ctf app` in a process whose working, home and temporary folders are new ones in `folder`; gives its address."""
    places = {name: folder / name for name in ("work", "home", "temporary")}
    for place in places.values():
        place.mkdir()
    environment = {**os.environ, "HOME": str(places["home"]), "TMPDIR": str(places["temporary"])}
    command = [sys.executable, "-m", "ctf.cli", "app", "--device", "cpu", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=places["work"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            assert process.poll() is None, "the server has ended"
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(20)
        assert code == 130  # as every command that Ctrl-C ends
