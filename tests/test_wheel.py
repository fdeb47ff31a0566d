"""The wheel in an environment of its own: `pytest -m wheel`, about a minute."""

import email
import os
import re
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctf.model_folder import Pipeline

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.wheel
#: Without the variables that could lead Python back to the checkout.
OWN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*command, **settings):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=OWN, check=False, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--wheel-dir", folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    """A folder with an environment of the wheel in `env`, which takes the dependencies of the current environment."""
    place = tmp_path_factory.mktemp("place")
    run(sys.executable, "-m", "venv", "--without-pip", place / "env")
    python = place / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    # A path alone does not follow the .pth files there, so not the one of an editable ctf.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/ctf"]
    ours = {line.removeprefix("src/") for line in run(*listed, cwd=ROOT).splitlines()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        kept = {name.split(".dist-info/")[1] for name in archive.namelist() if ".dist-info/" in name}
    assert names == ours
    assert {"ctf/py.typed", "ctf/assets/emoji/coarse.safetensors", "ctf/assets/ATTRIBUTION.md"} <= names
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE", "licenses/src/ctf/assets/ATTRIBUTION.md"} <= kept
    assert wheel.stat().st_size < 60 * 2**20


def test_metadata_are_those_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    versions = [c.split()[-1] for c in metadata.get_all("Classifier") if re.search(r"Python :: 3\.\d+$", c)]
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in versions
    assert metadata["Requires-Python"] == f">={versions[0]}"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_an_installed_wheel_samples_the_same_images(place):
    """The bundled model's images equal those of this checkout."""
    found = run(place / "env/bin/python", "-c", "import ctf; print(ctf.__file__)", cwd=place)
    assert Path(found.strip()).is_relative_to(place / "env")
    words = ["sample", "--labels", "3", "noto face-smiling", "--device", "cpu", "--out", "x"]
    run(place / "env/bin/ctf", *words, cwd=place)
    expected = Pipeline.from_pretrained("emoji")([3, "noto face-smiling"])
    images = [np.asarray(Image.open(path)) for path in sorted((place / "x").rglob("*.png")) if path.name != "sheet.png"]
    assert sorted(image.tobytes() for image in images) == sorted(np.asarray(image).tobytes() for image in expected)


def test_an_installed_wheel_opens_the_web_app(place):
    command = [place / "env/bin/ctf", "app", "--device", "cpu", "--port", "0"]
    with subprocess.Popen(command, cwd=place, env=OWN, stdout=subprocess.PIPE, text=True) as server:
        try:
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)
            address = next(match[0] for match in found if match)  # lines before it say what is being opened
            with urllib.request.urlopen(address) as page:
                assert "ctf · emoji" in page.read().decode()
        finally:
            server.send_signal(signal.SIGINT)


def test_type_checkers_see_the_types(place):
    """In a project that uses the wheel, since it holds py.typed."""
    (place / "use.py").write_text("import ctf\n\nimages: int = ctf.Pipeline.from_pretrained('emoji')([3])\n")
    check = [sys.executable, "-m", "mypy", "--python-executable", "env/bin/python", "--follow-imports=silent", "use.py"]
    done = subprocess.run(check, cwd=place, env=OWN, capture_output=True, text=True, check=False)
    assert 'expression has type "list[Image]", variable has type "int"' in done.stdout, done.stdout
