"""The published packages that the scripts of the bundled emoji read, and the names of icons in them."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

DESIGNS = {  # in label order → package, SPDX licence
    "noto": ("@iconify-json/noto@1.2.9", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji@1.2.5", "CC-BY-4.0"),
    "fluent-emoji": ("@iconify-json/fluent-emoji@1.2.7", "MIT"),
    "fluent-emoji-flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "MIT"),
    "emojione": ("@iconify-json/emojione@1.2.3", "CC-BY-4.0"),
    "fxemoji": ("@iconify-json/fxemoji@1.2.2", "Apache-2.0"),
}


def concept(name: str) -> str:
    """What an icon shows, however its design punctuates it."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_package(folder: Path, package: str, member: str) -> Any:
    """A JSON file of `package`, "name@version", in the .tgz file that `npm pack` left in `folder`."""
    name, _, version = package.rpartition("@")
    path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        sys.exit(f"{path} is missing: npm pack {package}")
    with tarfile.open(path) as archive:
        found = json.load(archive.extractfile("package/package.json"))["version"]
        if found != version:
            sys.exit(f"{path} holds version {found}, not {version}")
        return json.load(archive.extractfile(f"package/{member}"))
