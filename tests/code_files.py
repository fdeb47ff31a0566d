"""Folders of codes, as LlamaGen's extraction leaves them."""

import numpy as np


def write_codes(folder, codes, labels, size=256):
    """A pair of files for each image: codes [n, A, N] and labels [n], integers."""
    for kind, array in ("codes", codes), ("labels", labels):
        (folder / f"imagenet{size}_{kind}").mkdir(parents=True)
        for i in range(len(array)):
            np.save(folder / f"imagenet{size}_{kind}" / f"{i}.npy", array[i : i + 1])
