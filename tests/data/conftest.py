"""The pairs of pictures that the tests of this folder share."""

from pathlib import Path

import pytest

from bbdm.data.examples import PairExamples
from tests.conftest import SIZE, MakePairs

COUNT = 5


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: MakePairs) -> PairExamples:
    """Five pairs in the folders A and B, higher than wide, which are resized to SIZE x SIZE."""
    return make_pairs(tmp_path, COUNT, height=SIZE + 3)
