import warnings

import fsspec
import pytest
from image_files import SIZE, write

from ctf.images import open_images


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory):
    """Keep caches out of the home folder. (`datasets` reads its environment variable only when imported.)"""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CTF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(params=["", "file://"], ids=["path", "url"])
def opened(request, tmp_path):
    """Writes files (see `write`), and opens the folder or what `place` names in it: its images and the warnings."""

    def write_and_open(files, split=None, place=""):
        write(tmp_path, files)
        source = f"{request.param}{tmp_path}{place}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images = open_images(source, split, SIZE)
        return images, [str(warning.message).removeprefix(f"{source.partition('#')[0]}: ") for warning in caught]

    return write_and_open


@pytest.fixture
def memory(tmp_path):
    """Writes files, into the file system in memory too, and returns the URL of their folder there."""

    def put(files):
        write(tmp_path, files)
        for name in files:
            fsspec.filesystem("memory").pipe_file(f"{tmp_path}/{name}", (tmp_path / name).read_bytes())
        return f"memory:/{tmp_path}"

    yield put
    fsspec.filesystem("memory").store.clear()
