"""What a node goes by where pools and settings contradict each other."""

import pytest

from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.resource import Resource, key
from podway.cluster.change import Change
from podway.cluster.setting_aside import consistent, needs_a_look
from podway.cluster.view import ClusterView
from tests.api.test_judgement import block, config, node, pool


def after(view: ClusterView, obj: Resource) -> ClusterView:
    """Return what a node makes of an object's new state."""
    change = view.change(obj)
    newer = view.after(change)
    return consistent(newer, view) if needs_a_look(newer, (change,)) else newer


def without(view: ClusterView, obj: Resource) -> ClusterView:
    change = Change(key(obj), view.find(key(obj)), None)
    newer = view.after(change)
    return consistent(newer, view) if needs_a_look(newer, (change,)) else newer


def ranges(view: ClusterView) -> dict[str, str]:
    return {name: one.spec.cidr for name, one in view.pools.items()}


def test_a_pool_that_overlaps_another_is_none_until_that_is_gone() -> None:
    first, second = pool("a", "10.0.0.0/16", 1), pool("b", "10.0.0.0/17", 2)
    view = after(ClusterView.of([first]), second)
    assert ranges(view) == {"a": "10.0.0.0/16"}
    assert "overlaps 10.0.0.0/16 of IPPool/a" in view.rejected[key(second)].problem
    view = without(view, first)
    assert ranges(view) == {"b": "10.0.0.0/17"}
    assert not view.rejected


def test_the_last_good_state_of_a_pool_in_use_stays() -> None:
    good, owned = pool("p", "10.1.0.0/16"), block("10.1.3.0/24", "p")
    view = after(ClusterView.of([good, owned]), pool("p", "10.2.0.0/16"))
    assert ranges(view) == {"p": "10.1.0.0/16"}
    assert "n1 owns 10.1.3.0/24" in view.rejected["IPPool", "", "p"].problem
    view = without(after(view, node("n2", "172.30.0.2")), owned)
    assert ranges(view) == {"p": "10.2.0.0/16"}, "nobody owns a block of what it was any more"
    assert not view.rejected


def test_a_last_good_state_that_contradicts_what_holds_is_no_state() -> None:
    """The older pool was changed into the range of the younger one, of which nobody has a block."""
    view = ClusterView.of([pool("old", "10.1.0.0/16", 1), pool("new", "10.2.0.0/16", 2)])
    view = after(view, pool("old", "10.2.0.0/16", 1))
    assert ranges(view) == {"old": "10.2.0.0/16"}
    assert ("IPPool", "", "new") in view.rejected


STRAY = block("10.99.0.0/24", "default")
"""No block of the pool as it is, nor a part of it."""


@pytest.mark.parametrize(
    "beside",
    [
        [STRAY],
        [block("10.244.9.0/25", "default")],
        [pool("first", "10.244.128.0/17", 1), block("10.244.128.0/24", "first")],
        [pool("six", "fd00:10::/48", 1, attach="bridge"), block("fd00:10::/122", "six")],
    ],
    ids=[
        "made anew with another range",
        "another block size",
        "overlaps another one in use",
        "attached otherwise",
    ],
)
def test_a_pool_in_use_is_never_taken_away(beside: list[Resource]) -> None:
    """Whatever comes beside it, and whether or not a node knows a former state: pods live there."""
    used = pool("default", "10.244.0.0/16", 2)
    objects = [used, block("10.244.1.0/24", "default"), *beside]
    for former in (None, ClusterView.of(objects)):
        view = consistent(ClusterView.of(objects), former)
        assert ranges(view)["default"] == "10.244.0.0/16"
        assert key(used) in view.rejected, "and it is told"
        assert ranges(consistent(view, view)) == ranges(view)


def test_a_node_that_starts_comes_to_the_same() -> None:
    objects = [pool("a", "10.0.0.0/16", 1), pool("b", "10.0.0.0/17", 2), block("10.0.3.0/24", "b")]
    view = consistent(ClusterView.of(objects))
    assert ranges(view) == {"b": "10.0.0.0/17"}
    assert set(view.rejected) == {("IPPool", "", "a")}


def test_settings_keep_their_last_good_state_and_are_never_without_any() -> None:
    six, owned = pool("six", "fd00:10::/48"), block("fd00:10::/122", "six")
    view = after(ClusterView.of([six, owned, config(mtu=1400)]), config(mtu=1000))
    assert view.config.mtu == 1400
    assert (NetworkConfig.KIND, "", "default") in view.rejected
    fresh = consistent(ClusterView.of([six, owned, config(mtu=1000)]))
    assert fresh.config.mtu == 1000
    assert not fresh.rejected
    assert not fresh.unsettled


def test_what_is_observed_of_an_object_alters_nothing() -> None:
    view = ClusterView.of([pool("a", "10.0.0.0/16")])
    told = IPPool(metadata=view.pools["a"].metadata, spec=view.pools["a"].spec)
    assert not needs_a_look(view, (Change.of(view.pools["a"], told),))
