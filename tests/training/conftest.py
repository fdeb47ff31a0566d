import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `tiny_runs`, which started processes import too


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    from tiny_runs import make_token_set

    return make_token_set(tmp_path_factory.mktemp("tokens") / "set")
