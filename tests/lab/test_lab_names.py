import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.lease import ALIAS_BYTES
from podway.errors import InvalidArgument
from podway.lab import names

LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
LAB = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True)
POD = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,10}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("name", ["", "Lab", "a-b", "a/b", "..", "a" * 21, "lab\n"])
def test_a_labs_name_is_a_short_word(name: str) -> None:
    with pytest.raises(InvalidArgument, match="not a lab's name"):
        names.require_lab_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "../x", "n" * 41, "add", "fabric", "pod-x", "tor1"])
def test_a_nodes_name_is_a_label_without_a_second_meaning(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.require_node_name(name)
    assert caught.value.hint


@given(st.lists(st.tuples(LAB, LABEL, POD), min_size=2, unique=True, max_size=6))
def test_no_two_pods_share_a_namespace(pods: list[tuple[str, str, str]]) -> None:
    assert len({names.pod_netns(*pod) for pod in pods}) == len(pods)


@given(LAB, LAB, LABEL)
def test_one_labs_prefix_never_matches_anothers_namespace(lab: str, other: str, node: str) -> None:
    assert names.node_netns(other, node).startswith(names.prefix(lab)) == (lab == other)


def test_the_longest_pod_name_leaves_room_in_a_links_alias() -> None:
    namespace = names.pod_netns("l" * 20, "n" * 63, "p" * 253)
    assert len(f" podway /run/netns/{namespace}") < ALIAS_BYTES - 9
    assert namespace != names.pod_netns("l" * 20, "n" * 63, "p" * 252 + "q")
