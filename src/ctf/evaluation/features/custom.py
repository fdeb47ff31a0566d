"""A function of the user's as feature extractor."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ctf.errors import InputError
from ctf.evaluation.features.extractor import Features, check_images
from ctf.files import existing


class CustomFeatures:
    """What a function makes of images: "file.py:function" or "package.module:function".

    The function gets uint8 images (n, H, W, 3) and returns an array or tensor (n, d), or `Features`. Its errors
    come through as they are. The fingerprint is that of the source file, so it does not see changes to weights
    that the function reads.

    Raises:
        InputError: there is no such file, module or function, or importing it fails.
    """

    image_size = None

    def __init__(self, name: str) -> None:
        source, _, function = name.rpartition(":")
        module = import_source(source)
        if not callable(found := getattr(module, function, None)):
            raise InputError(f"{source} has no function {function!r}: name one that takes images and returns features")
        self.name = name
        self.distance = f"Fréchet distance, {Path(source).name}:{function}"
        self.fingerprint = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]
        self._function: Callable[[np.ndarray], Any] = found

    def __call__(self, images: np.ndarray) -> Features:
        check_images(images)
        result = self._function(images)
        if isinstance(result, Features):
            return dataclasses.replace(result, pool=self._matrix(result.pool, len(images)))
        return Features(self._matrix(result, len(images)))

    def _matrix(self, values: Any, count: int) -> np.ndarray:
        try:
            matrix = torch.as_tensor(values).detach().float().cpu().numpy()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{self.name} returned a {type(values).__name__}: return an array (n, d)") from None
        if matrix.ndim != 2 or len(matrix) != count:
            raise InputError(f"{self.name} returned {matrix.shape} for {count} images: return ({count}, d)")
        return matrix


def import_source(source: str) -> ModuleType:
    """The module in a file that ends in .py, or the one of that name."""
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = existing(source, "file")
        spec = importlib.util.spec_from_file_location(f"ctf_features_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # dataclasses look their module up here
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:  # the user's code fails in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{source} cannot be imported ({reason}): mend it or name another") from None
