"""What stands before each page's first command, and what is not run, and why: all of it is here."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scene:
    """Commands that go before a page's own, and the page's commands that are not run, each with the reason."""

    before: tuple[str, ...] = ()
    without: dict[str, str] = field(default_factory=dict)
    nothing: str = ""
    """Why no command of the page is run at all."""
    whole: bool = False
    """All outputs are shown. (Else a command below which the page shows nothing may print what it likes.)"""


INSTALLS = "installs packages of the system"
OTHER_SHELL = "writes into the machine's own directories; tests/preview/test_completion.py runs every shell's"
MEASURES = "wants a quiet machine, for twenty minutes"
HOST = "changes the machine itself; tests/host and tests/system do the same in namespaces and other directories"

PATH_SET = "the test has a PATH of its own"

PAGES: dict[str, Scene] = {
    "README.md": Scene(
        without={
            "./dev test": "is what runs this test",
            "./dev setup": INSTALLS,
            "export PATH=$PWD/.venv/bin:$PATH": PATH_SET,
        }
    ),
    "docs/tutorial.md": Scene(
        without={"./dev setup": INSTALLS, "export PATH=$PWD/.venv/bin:$PATH": PATH_SET},
        whole=True,
    ),
    "docs/benchmarks.md": Scene(
        without={
            "./dev bench": MEASURES,
            "./dev bench attach roundtrip": MEASURES,
            "./dev bench --write docs/benchmarks.md": MEASURES,
        }
    ),
    "docs/attach.md": Scene(("podway lab up --nodes 2 --attach bridge", "podway lab run web --node node1")),
    "docs/bgp.md": Scene(("podway lab up --nodes 2",)),
    "docs/channel.md": Scene(("podway lab up --nodes 2", "podway lab node add node7")),
    "docs/cli.md": Scene(
        ("podway lab up --nodes 2", "podway lab run web -n shop --serve 80", "podway lab run client"),
        {
            "podway get nodes": "shows what somebody gets who is not root; tests/cli asks as such a one",
            "podway completion bash > /etc/bash_completion.d/podway": OTHER_SHELL,
            'podway completion zsh > "${fpath[1]}/_podway"': OTHER_SHELL,
            "podway completion fish > ~/.config/fish/completions/podway.fish": OTHER_SHELL,
        },
    ),
    "docs/cni.md": Scene(),
    "docs/doctor.md": Scene(("podway lab up --nodes 2", "podway lab run a", "podway lab run b")),
    "docs/fabric.md": Scene(("podway lab up --nodes 3 --racks 2",)),
    "docs/host.md": Scene(nothing=HOST),
    "docs/ipam.md": Scene(("podway lab up --nodes 2",)),
    "docs/ipip.md": Scene(
        ("podway lab up --nodes 2 --encapsulation ipip",),
        {
            "bpftool net show dev eth0": "bpftool belongs to a kernel, and is not everywhere",
            "bpftool map dump name podway.rodata": "as above",
            "tc filter show dev eth0 ingress": "there is something to show only on kernels before 6.6",
        },
    ),
    "docs/lab.md": Scene(),
    "docs/plan.md": Scene(
        (
            "podway lab up --nodes 3",
            "printf '%s\\n' 'apiVersion: podway.io/v1' 'kind: IPPool' 'metadata: {name: more}' "
            "'spec: {cidr: 10.99.0.0/23}' >pool.yaml",
        )
    ),
    "docs/policy.md": Scene(
        (
            "podway lab up --nodes 2",
            "podway lab run db -n shop",
            "printf '%s\\n' 'apiVersion: networking.k8s.io/v1' 'kind: NetworkPolicy' 'metadata: {name: web}' "
            "'spec: {podSelector: {}}' >policy.yaml",
        )
    ),
    "docs/services.md": Scene(("podway lab up --nodes 2",)),
    "docs/simulate.md": Scene(
        without={
            "podway simulate --nodes 5000 --pods 100000": "takes minutes; tests/preview simulates smaller clusters"
        }
    ),
    "docs/trace.md": Scene(
        (
            "podway lab up --nodes 2 --pool 10.244.0.0/16 --pool fd00:244::/48",
            "podway lab run web -n shop --node node1 --serve 80",
            "podway lab run client --node node2 --ip 10.244.2.7",
            "podway lab node node1 -- ip route add 192.0.2.0/24 via 172.30.0.2",
        )
    ),
    "docs/verify.md": Scene(("podway lab up --nodes 2", "podway lab run a", "podway lab run b")),
    "docs/vxlan.md": Scene(("podway lab up --nodes 2 --encapsulation vxlan",)),
}

RUN_AS = {"./dev demo": "podway lab demo"}
"""What is run in a command's place: the same, without its installing of packages."""
