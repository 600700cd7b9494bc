"""A cluster made by hand for each test that asks for one, removed whatever happens."""

from collections.abc import Iterator

import pytest

from tests.verify.hand_cluster import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.build()
        yield made
    finally:
        made.remove()
