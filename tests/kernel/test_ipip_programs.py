"""The life of the IPIP programs: attached, found again, replaced, removed; what others attached stays."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from podway.errors import KernelError
from podway.kernel import engine, ipip, netns
from podway.kernel.bpf import ipip_programs, tcx
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.netlink import Connection
from podway.kernel.rtnl.tc import Direction
from podway.plan.objects import IPIP_DEVICE, IpipTunnel, NodePlan, Sysctl, TunnelEndpoint
from tests.kernel.ipip_lab import Lab, Node, stream
from tests.namespaces import TestNamespace
from tests.patience import ONCE, PATIENCE

pytestmark = pytest.mark.kernel

TCX = tcx.is_supported()
FOREIGN = "protocol ip pref 7 bpf bytecode '1,6 0 0 0'"
SCHED_CLS = 3
ACCEPT = bytes.fromhex("b700000000000000 9500000000000000")
"""r0 = TCX_PASS; exit"""
REST = NodePlan(sysctls=(Sysctl("net/ipv4/ip_forward", "1"),))
"""A plan without tunnels, of a node that Podway still serves."""

ATTACH = """
import sys
from ipaddress import ip_address
from podway.kernel import engine, ipip
from podway.kernel.netlink import Connection
from podway.plan.objects import IPIP_DEVICE, IpipTunnel, NodePlan

with Connection() as connection:
    kind = ipip.IpipTunnels(connection, lambda: {"eth0": int(sys.argv[1]), IPIP_DEVICE: 1})
    report = engine.apply([kind], NodePlan(tunnels=(IpipTunnel(IPIP_DEVICE, "eth0", ip_address("192.0.2.1")),)))
    assert len(report.changes) == 2, report
"""

LOOK = """
from podway.kernel import ipip
from podway.kernel.bpf import tcx
from podway.kernel.netlink import Connection
from podway.plan.objects import NodePlan

with Connection() as connection:
    kinds = [kind(connection, lambda: {"lo": 1}) for kind in (ipip.IpipTunnels, ipip.TunnelEndpoints)]
    print(tcx.is_supported(), *(kind.list(NodePlan()) for kind in kinds))
"""


def on(hook: str) -> pytest.MarkDecorator:
    """Run a test with the programs on one hook only."""
    return pytest.mark.parametrize("hook", [hook], indirect=True)


@pytest.fixture(params=["tcx", "clsact"])
def hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the programs are hung on: as the kernel has it, or as on one that has no tcx."""
    if request.param == "tcx" and not tcx.is_supported():
        pytest.skip("this kernel has no tcx")
    monkeypatch.setattr(tcx, "is_supported", lambda: request.param == "tcx")
    param: str = request.param
    return param


@pytest.fixture
def lab(hook: str, new_netns: Callable[[], TestNamespace]) -> Iterator[Lab]:
    lab = Lab(new_netns)
    yield lab
    lab.close()


def attached(node: Node) -> str:
    """What tc shows of the uplink and of the tunnel device, and the programs on tcx, in their order."""
    shown = node.netns.sh(f"""
        tc qdisc show
        for device in eth0 {IPIP_DEVICE}; do
            tc filter show dev $device ingress
            tc filter show dev $device egress
        done
    """)
    for device in ("eth0", IPIP_DEVICE):
        for direction in ("ingress", "egress"):
            for program in on_tcx(node, device, direction):
                with bpf.opened(program) as opened:
                    shown += f"tcx {device} {direction} {opened.name} id {program}\n"
    return shown


def on_tcx(node: Node, device: str, direction: Direction) -> list[int]:
    if not TCX:
        return []
    return netns.run(node.netns.fd, lambda: tcx.programs(node.numbers()[device], direction))


def exists(program: int) -> bool:
    with contextlib.suppress(KernelError), bpf.opened(program):
        return True
    return False


def newer(monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    """Let the programs be of another build."""
    image = ipip_programs.compiled().image
    monkeypatch.setattr(ipip_programs, "compiled", lambda: ipip_programs.Object(image, build))


def builds(node: Node) -> set[str]:
    return {found.config.build for found in ipip_programs.find(node.connection, node.numbers())}


def test_a_new_agent_finds_all_and_writes_nothing(lab: Lab, hook: str) -> None:
    report = lab.a.apply()
    assert sorted(str(change) for change in report.changes) == [
        f"IPIP decap program on eth0 ({hook}) was missing: added",
        f"IPIP encap program on {IPIP_DEVICE} ({hook}) was missing: added",
        "tunnel endpoint 172.31.2.1 was missing: added",
    ]
    before = attached(lab.a)
    with Connection(lab.a.netns.fd) as connection:
        kinds = (ipip.IpipTunnels(connection, lab.a.numbers), ipip.TunnelEndpoints(connection, lab.a.numbers))
        report = engine.apply(kinds, lab.a.plan)
        assert (report.changes, report.failures) == ((), ())
        assert [connection.writes, *(kind.writes for kind in kinds)] == [0, 0, 0]
    assert attached(lab.a) == before


def test_an_upgrade_replaces_the_programs_and_loses_no_packet(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.tunnel()
    with stream(lab.a.pod, lab.b.pod, lab.b.pod_address, 3000):
        for number in range(10):
            newer(monkeypatch, f"{number:012x}")
            for node in (lab.a, lab.b):
                report = node.apply()
                assert [change.action for change in report.changes] == ["replace", "replace"]
    assert lab.a.counters["encapsulated"] == lab.b.counters["decapsulated"] > 100, "counted on across all of them"
    assert builds(lab.a) == {"000000000009"}


@on("tcx")
def test_the_uplink_loses_nothing_when_programs_come_and_go(lab: Lab) -> None:
    with stream(lab.a.netns, lab.b.netns, lab.b.address, 15000):
        for _ in range(10):
            lab.tunnel()
            lab.a.apply(REST)
            lab.b.apply(REST)
    assert lab.a.counters == {}


@on("clsact")
def test_filters_give_way_to_tcx_without_loss(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if not TCX:
        pytest.skip("this kernel has no tcx")
    lab.tunnel()
    with stream(lab.a.pod, lab.b.pod, lab.b.pod_address, 3000):
        monkeypatch.setattr(tcx, "is_supported", lambda: True)
        for node in (lab.a, lab.b):
            report = node.apply()
            assert [change.action for change in report.changes] == ["add", "add", "remove", "remove"]
            assert "filter" not in attached(node)
            assert "qdisc clsact" in attached(node), "to take it off would cost packets"
    assert lab.a.counters["encapsulated"] == lab.b.counters["decapsulated"] > 100
    assert lab.a.apply().changes == ()


def test_where_bpf_is_not_allowed_there_is_nothing_of_ours(node: TestNamespace) -> None:
    """As in a container that is root of its own user namespace only: an agent without tunnels runs there."""
    unshare = ("unshare", "--user", "--map-root-user", "--net")
    if node.run(*unshare, "true", check=False).returncode:
        pytest.skip("no user namespace can be made here: so it is in a chroot")
    found = node.run(*unshare, sys.executable, "-c", LOOK)
    assert found.stdout == "False {} {}\n"


@on("tcx")
def test_programs_outlive_who_attached_them_and_go_with_the_device(lab: Lab) -> None:
    lab.a.netns.run(sys.executable, "-c", ATTACH, str(lab.a.numbers()["eth0"]))
    [program] = on_tcx(lab.a, "eth0", "ingress")
    with bpf.opened(program) as opened:
        assert opened.name == "podway_decap"
    lab.a.netns.sh("ip link delete eth0")
    until = time.monotonic() + PATIENCE
    while exists(program):
        assert time.monotonic() < until
        time.sleep(0.01)


@on("tcx")
def test_programs_of_others_on_tcx_stay_and_see_what_ours_leave(lab: Lab) -> None:
    """One that accepts every packet would end the search ahead of ours."""
    fd = bpf.checked("load", bpf.library().bpf_prog_load(SCHED_CLS, b"foreign", b"", ACCEPT, 2, None))
    try:
        index = lab.b.numbers()["eth0"]
        netns.run(lab.b.netns.fd, lambda: tcx.put(index, "ingress", fd, None, label="foreign"))
    finally:
        os.close(fd)
    before = attached(lab.b)
    lab.tunnel()
    assert attached(lab.b).index("podway_decap") < attached(lab.b).index("foreign")
    assert "1 received" in lab.a.pod.run(*ONCE, lab.b.pod_address).stdout
    lab.b.apply(REST)
    assert attached(lab.b) == before


@on("clsact")
def test_the_last_filter_idles_until_all_is_taken_away(lab: Lab) -> None:
    before = attached(lab.b)
    lab.tunnel()
    lab.b.apply(REST)
    assert "podway-ipip/decap" in attached(lab.b), "to take its qdisc off would cost packets"
    assert lab.b.apply(REST).changes == ()
    counted = lab.b.counters
    lab.a.pod.run("ping", "-c1", "-W0.1", lab.b.pod_address, check=False)
    assert lab.b.counters["unknown-source"] > counted["unknown-source"]
    assert lab.b.counters["decapsulated"] == counted["decapsulated"]
    assert {change.action for change in lab.b.apply().changes} == {"add"}
    assert "1 received" in lab.a.pod.run(*ONCE, lab.b.pod_address).stdout
    lab.b.apply(NodePlan())
    assert attached(lab.b) == before


def test_a_changed_address_is_seen_and_put_right(lab: Lab, hook: str) -> None:
    lab.a.apply()
    plan = NodePlan(
        tunnels=(IpipTunnel(IPIP_DEVICE, "eth0", ip_address("172.31.1.7")),), endpoints=lab.a.plan.endpoints
    )
    words = [change.difference for change in engine.diff(lab.a.kinds[0], plan)]
    assert f"IPIP encap program on {IPIP_DEVICE} ({hook}) is altered (local 172.31.1.1, not 172.31.1.7)" in words
    lab.a.apply(plan)
    assert lab.a.apply(plan).changes == ()


def test_removal_leaves_the_node_as_it_was(lab: Lab) -> None:
    before = attached(lab.a)
    lab.a.apply()
    report = lab.a.apply(NodePlan())
    assert {change.action for change in report.changes} == {"remove"}
    assert attached(lab.a) == before
    assert lab.a.counters == {}


def test_filters_and_hooks_of_others_stay(lab: Lab) -> None:
    lab.a.netns.sh(f"tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress {FOREIGN}")
    before = attached(lab.a)
    lab.a.apply()
    during = attached(lab.a)
    assert set(before.splitlines()) < set(during.splitlines())
    lab.a.apply(NodePlan())
    assert attached(lab.a) == before


def test_empty_hooks_of_others_stay(lab: Lab) -> None:
    lab.a.netns.sh("tc qdisc add dev eth0 clsact")
    before = attached(lab.a)
    lab.a.apply()
    lab.a.apply(NodePlan())
    assert attached(lab.a) == before


@on("clsact")
def test_our_hooks_stay_as_long_as_others_use_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.a.apply()
    newer(monkeypatch, "5" * 12)
    lab.a.apply()
    lab.a.netns.sh(f"tc filter add dev eth0 egress {FOREIGN}")
    lab.a.apply(NodePlan())
    rest = attached(lab.a)
    assert "clsact" in rest
    assert "pref 7 bpf" in rest
    assert "podway-ipip/" not in rest
    assert "podway_decap" not in rest


def test_what_somebody_takes_away_comes_back(lab: Lab, hook: str) -> None:
    lab.tunnel()
    if hook == "tcx":
        index, [program] = lab.a.numbers()["eth0"], on_tcx(lab.a, "eth0", "ingress")
        netns.run(lab.a.netns.fd, lambda: tcx.detach(index, "ingress", program, label="ours"))
    else:
        lab.a.netns.sh("tc qdisc del dev eth0 clsact")
    report = lab.a.apply()
    assert f"IPIP decap program on eth0 ({hook}) was missing: added" in map(str, report.changes)
    assert "1 received" in lab.a.pod.run(*ONCE, lab.b.pod_address).stdout


@on("clsact")
def test_a_place_that_others_took_is_left_to_them(lab: Lab) -> None:
    lab.a.netns.sh("tc qdisc add dev eth0 clsact")
    lab.a.netns.sh("tc filter add dev eth0 ingress protocol all pref 112 handle 1 bpf bytecode '1,6 0 0 0'")
    before = attached(lab.a)
    report = engine.apply(lab.a.kinds, lab.a.plan)
    taken, unattached = report.failures
    assert isinstance(taken, KernelError)
    assert (taken.errno, taken.kernel_says) == (errno.EEXIST, "Filter already exists")
    assert "no IPIP program is attached" in unattached.message
    assert set(before.splitlines()) <= set(attached(lab.a).splitlines())


def test_a_missing_device_is_named(lab: Lab, hook: str) -> None:
    plan = NodePlan(
        tunnels=(IpipTunnel(IPIP_DEVICE, "eth7", ip_address("172.31.1.1")),), endpoints=lab.a.plan.endpoints
    )
    report = engine.apply(lab.a.kinds, plan)
    assert {getattr(failure, "errno", None) for failure in report.failures} == {errno.ENODEV}
    assert f"attach IPIP decap program on eth7 ({hook}): device eth7: No such device" in report.failures[1].message
    assert "no IPIP program is attached" in report.failures[-1].message
    assert "clsact" not in attached(lab.a)


def test_many_endpoints_are_kept_and_only_differences_written(lab: Lab) -> None:
    lab.a.apply()
    many = tuple(TunnelEndpoint(ip_address("10.9.0.0") + number) for number in range(5000))
    plan = NodePlan(tunnels=lab.a.plan.tunnels, endpoints=many)
    assert len(lab.a.apply(plan).changes) == 5001
    fewer = NodePlan(tunnels=plan.tunnels, endpoints=many[1:])
    assert [str(change) for change in lab.a.apply(fewer).changes] == [
        "tunnel endpoint 10.9.0.0 was not in the plan: removed"
    ]
    assert lab.a.apply(fewer).changes == ()


def test_a_program_that_the_kernel_refuses_is_explained(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = ipip_programs.compiled().image.replace(
        b"\x95\x00\x00\x00\x00\x00\x00\x00", b"\x05\x00\x00\x00\x00\x00\x00\x00"
    )
    monkeypatch.setattr(ipip_programs, "compiled", lambda: ipip_programs.Object(damaged, "0" * 12))
    report = engine.apply(lab.a.kinds, lab.a.plan)
    assert "load the eBPF object podway" in report.failures[0].message
    assert "the kernel's verifier says" in report.failures[0].hint
    assert "clsact" not in attached(lab.a)
