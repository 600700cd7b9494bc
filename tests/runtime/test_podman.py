"""Podman with its CNI backend: libcni as a runtime calls it, with Debian's plugins chained after ours."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.runtime.busybox_image import ASKER, PAGE
from tests.runtime.node_host import NodeHost
from tests.runtime.real_lab import RealLab, new_lab
from tests.runtime.runtimes import PODMAN_NODE, Podman

pytestmark = pytest.mark.kernel

OTHER_POD = "on-node2"


def test_a_container_has_the_address_that_the_agent_leased(podman: Podman, lab: RealLab) -> None:
    container = podman.run("--name=web")
    lease = lab.leases(PODMAN_NODE)[container]
    assert podman.addresses(container) == lease["addresses"]
    assert lease["network"] == "podway"
    inside = podman("exec", container, "ip", "-o", "address", "show", "eth0").stdout
    assert all(f" {address}/" in inside for address in lease["addresses"])
    assert all(lab.ping(OTHER_POD, address) for address in lease["addresses"])


def test_stop_start_and_remove(podman: Podman, lab: RealLab) -> None:
    before = lab.leases(PODMAN_NODE).keys()
    container = podman.run()
    podman("stop", "--time=0", container)
    assert container not in lab.leases(PODMAN_NODE)
    podman("start", container)
    again = lab.leases(PODMAN_NODE)[container]["addresses"]
    assert podman.addresses(container) == again
    assert all(lab.ping(OTHER_POD, address) for address in again)
    podman("rm", "--force", "--time=0", container)
    assert lab.leases(PODMAN_NODE).keys() == before
    assert podman.libcni.cached(container) is None
    assert list(podman.host.path("/run/netns").iterdir()) == []
    assert lab.spooled(PODMAN_NODE) == []


def test_reload_makes_the_network_anew_with_the_same_addresses(podman: Podman, lab: RealLab) -> None:
    container = podman.run("--publish=8080:80")
    before = podman.addresses(container)
    podman("network", "reload", container)
    assert podman.addresses(container) == before
    assert lab.leases(PODMAN_NODE)[container]["addresses"] == before
    assert all(lab.ping(OTHER_POD, address) for address in before)
    commands = [call.command for call in podman.witness.calls(container)]
    assert commands == ["ADD", "DEL", "ADD"]


def test_the_chain_is_told_what_we_made(podman: Podman, lab: RealLab) -> None:
    container = podman.run("--name=chained")
    call = podman.witness.calls(container)[-1]
    result, lease = call.config["prevResult"], lab.leases(PODMAN_NODE)[container]
    assert call.arguments["K8S_POD_NAME"] == "chained"
    host_end, pod_end = result["interfaces"][:2]
    assert host_end["name"] == lease["link"]
    assert (pod_end["name"], pod_end["sandbox"]) == ("eth0", podman.netns(container))
    assert [ip["interface"] for ip in result["ips"]] == [1, 1]
    assert {route["dst"] for route in result["routes"]} == {"0.0.0.0/0", "::/0"}


def test_portmap_tuning_and_bandwidth(podman: Podman, lab: RealLab) -> None:
    container = podman.run("--publish=8080:80")
    node = lab.addresses(PODMAN_NODE)
    for address, asker in zip(node, lab.addresses("node2"), strict=True):
        assert lab.fetch("node2", address, 8080) == PAGE
        assert f"{asker}]" in lab.fetch("node2", address, 8080, ASKER)
    assert podman("exec", container, "cat", "/proc/sys/net/core/somaxconn").stdout == "500\n"
    link = lab.leases(PODMAN_NODE)[container]["link"]
    (limit,) = json.loads(podman.host.run("tc", "-json", "qdisc", "show", "dev", link, "root").stdout)
    assert (limit["kind"], limit["options"]["rate"]) == ("tbf", 8_000_000 // 8)
    podman("rm", "--force", "--time=0", container)
    assert PAGE not in lab.fetch("node2", node[0], 8080)


def test_a_wanted_address(podman: Podman, lab: RealLab) -> None:
    """Podman tells one address in CNI_ARGS, and two by the `ips` capability."""
    wanted = ["10.244.77.8", "fd00:10:244::7:8"]  # in blocks that nobody owned so far
    one = podman.run(f"--ip={wanted[0]}")
    assert podman.witness.calls(one)[-1].arguments["IP"] == wanted[0]
    assert podman.addresses(one)[0] == wanted[0]
    assert f"{wanted[0]} is leased" in podman.refused(f"--ip={wanted[0]}")
    podman("rm", "--force", "--time=0", one)

    both = podman.run(f"--ip={wanted[0]}", f"--ip6={wanted[1]}")
    assert podman.witness.calls(both)[-1].config["runtimeConfig"]["ips"] == wanted
    assert podman.addresses(both) == lab.leases(PODMAN_NODE)[both]["addresses"] == wanted
    assert all(lab.ping(OTHER_POD, address) for address in wanted)

    outside = podman.refused("--ip=192.0.2.7")
    assert "address 192.0.2.7 lies outside every IPPool" in outside
    assert "choose one inside 10.244.0.0/16" in outside


def test_several_containers_at_once(podman: Podman, lab: RealLab) -> None:
    with ThreadPoolExecutor(4) as pool:
        containers = list(pool.map(lambda _: podman.run(), range(4)))
    leases = lab.leases(PODMAN_NODE)
    stated = [podman.addresses(container) for container in containers]
    assert stated == [leases[container]["addresses"] for container in containers]
    assert len({address for both in stated for address in both}) == 8
    one, *others = containers
    for other in others:
        url = f"http://{podman.addresses(other)[0]}/"
        page = podman.host.run("nsenter", f"--net={podman.netns(one)}", "curl", "-sS", "-m5", url).stdout
        assert page == PAGE


def test_an_exhausted_pool_is_told_in_podmans_error(podman: Podman, tmp_path: Path) -> None:
    # Of a /30, all but the network's, the broadcast and the first address can be leased.
    with (
        new_lab("--nodes=1", "--pool=10.9.0.0/30", "--block-size=30") as lab,
        closing(NodeHost(lab.name, PODMAN_NODE, tmp_path)) as host,
    ):
        small = Podman.on(host, podman.rootfs)
        first = small.run()
        words = small.refused("--name=second")
        assert "IPPool/ipv4 (10.9.0.0/30) is exhausted" in words
        assert "1 are leased" in words
        assert "add another IPv4 IPPool" in words
        assert small.inspect("second")["State"]["Running"] is False
        assert list(lab.leases(PODMAN_NODE)) == [first]


def test_while_the_agent_is_down_a_start_fails_with_advice_and_succeeds_later(
    podman: Podman, lab: RealLab
) -> None:
    lab.stop_agent(PODMAN_NODE)
    try:
        words = podman.refused("--name=early")
        assert "no answer from the Podway agent at /run/podway/cni.sock" in words
        assert "see that the Podway agent runs on this node, then try again" in words
        assert podman.inspect("early")["State"]["Running"] is False
    finally:
        lab.start_agent(PODMAN_NODE)
    podman("start", "early")
    assert all(lab.ping(OTHER_POD, address) for address in podman.addresses("early"))


def test_while_the_agent_is_down_a_stop_succeeds_and_nothing_is_left_later(podman: Podman, lab: RealLab) -> None:
    stays, goes = podman.run(), podman.run()
    kept = podman.addresses(stays)
    lab.stop_agent(PODMAN_NODE)
    try:
        podman("rm", "--force", "--time=0", goes)
        assert lab.spooled(PODMAN_NODE) == [f"{goes}:eth0"]
        assert all(lab.ping(OTHER_POD, address) for address in kept)
    finally:
        lab.start_agent(PODMAN_NODE)
    leases = lab.leases(PODMAN_NODE)
    assert goes not in leases
    assert leases[stays]["addresses"] == kept
    assert lab.spooled(PODMAN_NODE) == []


def write_network(podman: Podman, name: str, *plugins: object, version: str = "1.0.0") -> None:
    """Add a network to podman's."""
    network = {"cniVersion": version, "name": name, "plugins": [{"type": "podway"}, *plugins]}
    (podman.host.directory / "net.d" / f"20-{name}.conflist").write_text(json.dumps(network))


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_a_list_of_an_older_version(podman: Podman, lab: RealLab, version: str) -> None:
    name = f"v{version}"
    write_network(podman, name, podman.witness.config, version=version)
    container = podman.run(network=name)
    leased = lab.leases(PODMAN_NODE)[container]["addresses"]
    assert podman.addresses(container, name) == leased
    stated = podman.witness.calls(container)[-1].config["prevResult"]["ips"]
    assert [ip["version"] for ip in stated] == ["4", "6"]
    assert all(lab.ping(OTHER_POD, address) for address in leased)


def test_a_second_network_of_ours_is_refused_and_leaves_nothing(podman: Podman, lab: RealLab) -> None:
    before = lab.leases(PODMAN_NODE)
    write_network(podman, "second")
    words = podman.refused("--network=second")
    assert "File exists" in words
    assert "give a pod only one network with default routes" in words
    assert lab.leases(PODMAN_NODE) == before


def test_when_a_later_plugin_fails_nothing_of_ours_is_left(podman: Podman, lab: RealLab) -> None:
    before = lab.leases(PODMAN_NODE)
    write_network(podman, "broken", {"type": "tuning", "sysctl": {"net.core.no_such_thing": "1"}})
    assert "no_such_thing" in podman.refused(network="broken")
    assert lab.leases(PODMAN_NODE) == before


def test_podman_never_checks(podman: Podman) -> None:
    container = podman.run()
    podman("restart", "--time=0", container)
    podman("rm", "--force", "--time=0", container)
    assert {call.command for call in podman.witness.calls(container)} == {"ADD", "DEL"}
