"""What an agent knew last of pods and policies: all of them, or nothing, and the next one can tell which."""

from pathlib import Path

from podway.agent.lastknown import LastKnown
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
    assert not found.unlisted


def test_who_was_still_listing_says_nothing_of_what_there_is(tmp_path: Path) -> None:
    view = ClusterView.of([builders.config(data_path="ebpf")]).unfollowed()
    for kind in JUDGING[:2]:
        view = view.relisted(kind, [WEB] if kind is type(WEB) else [])
    found = kept(tmp_path, view)
    assert not found.tables["Pod"]
    assert found.unlisted == {kind.KIND for kind in JUDGING}


def test_without_policies_no_pod_is_kept(tmp_path: Path) -> None:
    found = kept(tmp_path, ClusterView.of([WEB, builders.config()]).unfollowed())
    assert not found.tables["Pod"]
    assert found.unlisted
