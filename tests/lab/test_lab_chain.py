"""The chain against the reference plugins of containernetworking-plugins."""

import json
from pathlib import Path
from typing import Any

import pytest

from podway.errors import LabError
from podway.lab.chain import Container, PluginChain
from tests.namespaces import TestNamespace
from tests.patience import ANSWERED

pytestmark = pytest.mark.kernel

PTP: dict[str, Any] = {
    "type": "ptp",
    "ipam": {"type": "host-local", "subnet": "10.99.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
}
TUNING: dict[str, Any] = {"type": "tuning", "capabilities": {"mac": True}}


def _chain(node: TestNamespace, folder: Path, *plugins: dict[str, Any]) -> PluginChain:
    path = folder / "10-test.conflist"
    leases = {"dataDir": str(folder / "leases")}
    filled = [{**p, "ipam": {**p["ipam"], **leases}} if "ipam" in p else p for p in plugins]
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": filled}))
    return PluginChain(path, node=node.name, search=[Path("/usr/lib/cni")], cache=folder / "cache", environment={})


def test_a_chain_adds_checks_and_deletes_in_the_nodes_namespace(
    node: TestNamespace, pod: TestNamespace, tmp_path: Path
) -> None:
    chain = _chain(node, tmp_path, PTP, TUNING)
    mac = "02:00:00:00:00:77"
    container = Container(id="c1", netns=str(pod.path), capabilities={"mac": mac, "ips": ["10.99.0.9/24"]})
    result = chain.add(container)
    assert [link["mac"] for link in result["interfaces"] if link.get("sandbox")] == [mac]
    address = result["ips"][0]["address"].partition("/")[0]
    node.run(*ANSWERED, address)
    chain.check(container)
    pod.sh(f"ip address flush dev eth0; ip address add {address}/25 dev eth0")
    with pytest.raises(LabError, match="ptp: CHECK"):
        chain.check(container)
    chain.delete(container)
    chain.delete(container)
    assert "veth" not in node.sh("ip link")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_failed_add_made_is_deleted_and_the_plugins_words_are_told(
    node: TestNamespace, pod: TestNamespace, tmp_path: Path
) -> None:
    chain = _chain(node, tmp_path, PTP, {**TUNING, "sysctl": {"net.no.such": "1"}})
    with pytest.raises(LabError, match=r"CNI plugin tuning: ADD: .*net/no/such.*\(CNI error"):
        chain.add(Container(id="c2", netns=str(pod.path)))
    assert "veth" not in node.sh("ip link")
    assert "eth0" not in pod.sh("ip link")


def test_a_missing_plugin_and_a_broken_list_are_told(
    node: TestNamespace, pod: TestNamespace, tmp_path: Path
) -> None:
    with pytest.raises(LabError, match="'nosuch' is in none of /usr/lib/cni"):
        _chain(node, tmp_path, {"type": "nosuch"}).add(Container(id="c3", netns=str(pod.path)))
    (tmp_path / "10-test.conflist").write_text("{")
    with pytest.raises(LabError, match="no network configuration list"):
        PluginChain(tmp_path / "10-test.conflist", node=node.name, search=[], cache=tmp_path, environment={})
