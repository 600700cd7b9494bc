from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bgp.bgp_lab import Segment


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    segment = Segment(tmp_path)
    try:
        yield segment
    finally:
        segment.close()
