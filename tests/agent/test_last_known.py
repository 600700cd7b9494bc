"""What an agent knew last of pods and policies: all of them, or nothing, and the next one can tell which."""

from pathlib import Path

from podway.agent.lastknown import FILE, LastKnown
from podway.api.checked import RejectedObject
from podway.cluster.view import JUDGING, ClusterView
from tests import builders

WEB = builders.pod("web", "node1", "10.244.1.1")


def kept(run_dir: Path, view: ClusterView) -> ClusterView:
    LastKnown(run_dir, "memory:")._write(view)
    found = LastKnown(run_dir, "memory:").load()
    assert found is not None
    return found


def test_pods_are_kept_where_policies_are_enforced(tmp_path: Path) -> None:
    found = kept(tmp_path, ClusterView.of([WEB, builders.config(data_path="ebpf")]))
    assert len(found.tables["Pod"]) == 1
    assert not found.unjudged


def test_who_was_still_listing_says_nothing_of_what_there_is(tmp_path: Path) -> None:
    view = ClusterView.of([builders.config(data_path="ebpf")]).unfollowed()
    for kind in JUDGING[:2]:
        view = view.relisted(kind, [WEB] if kind is type(WEB) else [])
    found = kept(tmp_path, view)
    assert not found.tables["Pod"]
    assert found.unjudged == {kind.KIND for kind in JUDGING}


def test_without_policies_no_pod_is_kept(tmp_path: Path) -> None:
    found = kept(tmp_path, ClusterView.of([WEB, builders.config()]).unfollowed())
    assert not found.tables["Pod"]
    assert found.unjudged


def test_what_was_no_fact_is_none_for_the_next_agent_either(tmp_path: Path) -> None:
    """An unreadable policy isolates its namespace, and unreadable settings are not the defaults."""
    unfit = [
        RejectedObject(("NetworkPolicy", "shop", "p"), "it cannot be read: a new field"),
        RejectedObject(("NetworkConfig", "", "default"), "it cannot be read: a new field"),
        RejectedObject(("ClusterAuthority", "", "default"), "it cannot be read"),
    ]
    found = kept(tmp_path, ClusterView.of([WEB], rejected=unfit))
    assert found.rejected.keys() == {one.key for one in unfit[:2]}
    assert found.unsettled
    assert len(found.tables["Pod"]) == 1


def test_what_this_podway_cannot_read_is_rejected_and_not_forgotten(tmp_path: Path) -> None:
    LastKnown(tmp_path, "memory:")._write(ClusterView.of([WEB, builders.config(data_path="ebpf")]))
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes().replace(b'"dataPath":"ebpf"', b'"dataPath":"ebpf","newer":1'))
    found = LastKnown(tmp_path, "memory:").load()
    assert found is not None
    assert found.rejected.keys() == {("NetworkConfig", "", "default")}
    assert found.unsettled
