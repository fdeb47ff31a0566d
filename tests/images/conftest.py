import pytest


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
