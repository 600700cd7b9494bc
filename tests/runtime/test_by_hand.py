"""CHECK, GC and STATUS: podman 4 and containerd 1.6 never give them, so here they come as from libcni 1.2."""

import pytest

from podway.cni.spec import Code
from tests.runtime.real_lab import RealLab
from tests.runtime.runtimes import PODMAN_NODE, Podman

pytestmark = pytest.mark.kernel


def test_check_of_the_whole_chain(podman: Podman) -> None:
    # Without a published port: portmap 1.1 looks for its IPv4 rules in ip6tables, too, and fails.
    container = podman.run()
    assert podman.libcni.check(container, podman.netns(container)) == {}


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        ("ip -4 address flush dev eth0", "10.244."),
        ("ip -6 route del default", "route default via fe80::1"),
        ("ip link set eth0 mtu 1400", "1400"),
        ("ip link set eth0 down", "eth0"),
    ],
)
def test_check_tells_what_was_changed_in_the_pod(podman: Podman, tamper: str, told: str) -> None:
    container = podman.run()
    netns = podman.netns(container)
    podman.host.run("nsenter", f"--net={netns}", *tamper.split())
    error = podman.libcni.check(container, netns)["podway"]
    assert error["code"] == Code.CHECK_FAILED
    assert told in error["msg"]
    assert error["details"]


def test_gc_removes_what_the_runtime_does_not_list(podman: Podman, lab: RealLab) -> None:
    kept, lost = podman.run(), podman.run()
    others = {container for container, lease in lab.leases(PODMAN_NODE).items() if container not in (kept, lost)}
    assert podman.libcni.garbage_collect([kept, *others]) == {}
    assert lab.leases(PODMAN_NODE).keys() == others | {kept}
    assert podman.libcni.check(kept, podman.netns(kept)) == {}
    podman("rm", "--force", "--time=0", lost)  # DEL of what is gone


def test_status(podman: Podman, lab: RealLab) -> None:
    assert podman.libcni.status() == {}
    lab.stop_agent(PODMAN_NODE)
    try:
        error = podman.libcni.status()
    finally:
        lab.start_agent(PODMAN_NODE)
    assert (error["code"], error["cniVersion"]) == (Code.NOT_AVAILABLE, "1.1.0")
    assert podman.libcni.status() == {}
