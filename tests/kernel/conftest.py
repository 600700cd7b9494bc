"""What tests of the kernel are run for: both families, both ways to attach a pod."""

import pytest

from podway.api.addresses import Family
from podway.api.kinds.ip_pool import Attach


@pytest.fixture(params=["routed", "bridge"])
def attach(request: pytest.FixtureRequest) -> Attach:
    param: Attach = request.param
    return param


@pytest.fixture(params=list(Family), ids=lambda family: family.label)
def family(request: pytest.FixtureRequest) -> Family:
    param: Family = request.param
    return param
