"""What a new lab's store holds."""

from ipaddress import ip_network

import pytest

from podway.api.kinds.network_config import DataPath, NetworkConfig, NetworkConfigSpec, ServiceClients
from podway.errors import InvalidArgument
from podway.lab.cluster import DEFAULT_POOL_SETTINGS
from podway.lab.facts import DATA_PATH, first_objects


def data_path(chosen: DataPath | None, services: ServiceClients = "off") -> str:
    objects = first_objects(
        (ip_network("10.244.0.0/16"),),
        nodes=1,
        block_sizes=(),
        asn=64512,
        pool_settings=DEFAULT_POOL_SETTINGS,
        tor="none",
        families=1,
        services=services,
        data_path=chosen,
    )
    (config,) = (one for one in objects if isinstance(one, NetworkConfig))
    return config.spec.data_path


def test_the_data_path_is_what_was_chosen_or_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_PATH, raising=False)
    assert data_path(None) == NetworkConfigSpec().data_path
    assert data_path(None, "pods") == "ebpf"
    monkeypatch.setenv(DATA_PATH, "ebpf")
    assert data_path(None) == "ebpf"
    assert data_path("kernel") == "kernel"
    monkeypatch.setenv(DATA_PATH, "kernel")
    assert data_path(None, "pods") == "ebpf"
    assert data_path("auto", "pods") == "auto"
    with pytest.raises(InvalidArgument, match="needs the flow engine"):
        data_path("kernel", "pods")
    monkeypatch.setenv(DATA_PATH, "epbf")
    with pytest.raises(InvalidArgument, match="epbf is no data path"):
        data_path(None)
