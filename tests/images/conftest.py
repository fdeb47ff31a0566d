import pytest


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory):
    """Keep what `datasets` caches out of the home folder. (It reads its environment variable only when imported.)"""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before
