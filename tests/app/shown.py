"""How tests read what the web app shows."""

import base64
import io

from PIL import Image


def opened(url):
    """The picture in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)))


def asked(studio, label="", num=1, seed=0, beside=False, **changes):
    """What the form of Generate sends: class, design, images, seed, whether another model stands beside, settings."""
    return [label, "", num, seed, beside, *(changes.get(control.key, control.value) for control in studio.controls)]
