"""What an etcd's URL says, and where objects are in etcd: pure."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.kinds import KINDS
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import NodeLease
from podway.api.kinds.pod import Pod
from podway.api.kinds.secret import Secret
from podway.errors import InvalidArgument
from podway.store.etcd.access import Access, read_url
from podway.store.etcd.keys import OWNED, Layout, Range, below
from podway.store.material import Material
from tests.kubernetes import ROOT

LAYOUT = Layout("p/q")
NAMES = st.from_regex(r"[a-z0-9]([-.a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)


def inside(key: bytes, where: Range) -> bool:
    return where.key <= key < where.end if where.end else key == where.key


def test_a_url_says_everything() -> None:
    assert read_url("etcd://h") == Access(servers=("http://h:2379",), prefix="podway")
    url = "etcd://a:1,b,[fd00::1]:3,[fd00::2]/x/y/?ca=/c&cert=/d&key=/e&user=n1&password-file=/f"
    assert read_url(url) == Access(
        servers=("https://a:1", "https://b:2379", "https://[fd00::1]:3", "https://[fd00::2]:2379"),
        prefix="x/y",
        authorities=Material(path=Path("/c")),
        certificate=Material(path=Path("/d")),
        key=Material(path=Path("/e")),
        user="n1",
        password=Material(path=Path("/f")),
    )
    trusting = read_url("etcd://a?ca=system")
    assert (trusting.servers, trusting.authorities) == (("https://a:2379",), None)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("etcd:", "no URL of this form"),
        ("etcd:h", "no URL of this form"),
        ("etcd://a#b", "no URL of this form"),
        ("etcd://", "'' is no HOST:PORT"),
        ("etcd://a,,b", "'' is no HOST:PORT"),
        ("etcd://a:0", "'a:0' is no HOST:PORT"),
        ("etcd://a:x", "'a:x' is no HOST:PORT"),
        ("etcd://a:99999", "'a:99999' is no HOST:PORT"),
        ("etcd://fd00::1", "'fd00::1' is no HOST:PORT"),
        ("etcd://a b", "'a b' is no HOST:PORT"),
        ("etcd://[x]:1", "'[x]:1' is no HOST:PORT"),
        ("etcd://[fd00::1", "'[fd00::1' is no HOST:PORT"),
        ("etcd://u:p@a", "`ps` shows no password"),
        ("etcd://a/p//q", "is no prefix"),
        ("etcd://a/p*", "is no prefix"),
        ("etcd://a?tls=yes", "tls means nothing"),
        ("etcd://a?ca=", "left empty"),
        ("etcd://a?ca=/x&ca=/y", "said twice"),
        ("etcd://a?cert=/x", "cert and key belong together"),
        ("etcd://a?user=x", "user and password-file belong together"),
        ("etcd://a?ca=x.pem", "ca is no absolute path"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match="no store can be opened at") as error:
        read_url(url)
    assert problem in error.value.message
    assert "etcd://HOST:2379" in error.value.hint


@given(st.sampled_from([*KINDS.values()]), NAMES, NAMES)
def test_an_objects_key_says_which_it_is(kind: type[Node], name: str, other: str) -> None:
    about = (kind.KIND, other if kind.NAMESPACED else "", name)
    owner = other if kind.KIND in OWNED else ""
    key = LAYOUT.key(about, owner)
    assert LAYOUT.read(kind, key) == (about, owner)
    if kind.KIND != Secret.KIND:
        assert inside(key, LAYOUT.of_kind(kind))
    assert not any(inside(key, gap) for gap in LAYOUT.unknown())


@given(st.sampled_from([Node, Pod, AddressBlock]), st.binary(max_size=12))
def test_any_key_can_be_told_and_found_again(kind: type[Node], rest: bytes) -> None:
    key = f"p/q/{kind.KIND}/".encode() + rest
    about, owner = LAYOUT.read(kind, key)
    assert LAYOUT.key(about, owner) == key
    assert about[2].isprintable()
    assert inside(key, LAYOUT.of_kind(kind))


@given(NAMES, NAMES, NAMES, st.sampled_from(["Node", "Lease", "NodeCertificate", "AddressBlock"]))
def test_a_node_may_write_its_own_objects_and_no_others(node: str, owner: str, name: str, kind: str) -> None:
    about = {"Lease": ("Lease", "podway", owner), "AddressBlock": ("AddressBlock", "", name)}
    key = LAYOUT.key(about.get(kind, (kind, "", owner)), owner if kind == "AddressBlock" else "")
    assert any(inside(key, where) for where in LAYOUT.writable(node)) is (node == owner)
    assert any(inside(key, where) for where in LAYOUT.readable())


def test_a_node_reads_all_but_others_secrets() -> None:
    def readable(kind: str, namespace: str = "") -> bool:
        return any(inside(LAYOUT.key((kind, namespace, "x")), where) for where in LAYOUT.readable())

    assert all(readable(name) for name in KINDS if name != Secret.KIND)
    assert readable(Secret.KIND, "podway")
    assert not readable(Secret.KIND, "podway-authority")
    assert any(inside(LAYOUT.identity, where) for where in LAYOUT.readable())
    for where in (*LAYOUT.unknown(), LAYOUT.of_kind(Secret), LAYOUT.of_kind(NodeLease)):
        assert any(where.key >= one.key and where.end <= one.end for one in LAYOUT.readable())


def test_the_roles_that_the_page_tells_are_those_that_an_agent_needs() -> None:
    """docs/store.md shows them for node1, as commands for etcdctl."""
    told: dict[str, set[Range]] = {"read": set(), "write": set()}
    for line in (ROOT / "docs/store.md").read_text().splitlines():
        if line.startswith("etcdctl role grant-permission "):
            words = line.split()[3:]
            whole = words[0] == "--prefix=true"
            role, verb, key, *end = words[whole:]
            assert role == "node1"
            told[verb].add(below(key.encode()) if whole else Range(key.encode(), "".join(end).encode()))
    layout = Layout("podway")
    assert told == {"read": {*layout.readable()}, "write": {*layout.writable("node1")}}
