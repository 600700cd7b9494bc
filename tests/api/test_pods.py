"""What a pod says of itself beyond its fields."""

import pytest

from podway.api.kinds.pod import Pod
from podway.api.meta import Metadata, OwnerReference


@pytest.mark.parametrize(
    ("owners", "workload"),
    [
        ((), ""),
        ((("ReplicaSet", "web-5d4f8", True),), "Deployment/web"),
        ((("ReplicaSet", "web-5d4f9", True),), "ReplicaSet/web-5d4f9"),  # made by hand: its name is its own
        ((("StatefulSet", "db", True),), "StatefulSet/db"),
        ((("DaemonSet", "log", True),), "DaemonSet/log"),
        ((("Job", "backup-29411220", True),), "CronJob/backup"),
        ((("Job", "backup-7", True),), "Job/backup-7"),
        ((("Job", "backup-20251202", True),), "Job/backup-20251202"),  # made by hand: a date is no minute
        ((("Node", "node1", True),), "Node/node1"),  # a static pod
        ((("ConfigMap", "c", False), ("Rollout", "web", True)), "Rollout/web"),
        ((("ConfigMap", "c", False),), ""),
        ((("Foo", "a/b", True),), ""),  # what an API server takes, and no kind or name is
        ((("Foo/Bar", "a", True),), ""),
        ((("Foo", "a" * 254, True),), ""),
        ((("F" * 64, "a", True),), ""),
        ((("", "a", True),), ""),
    ],
)
def test_a_pods_workload_is_who_controls_it(owners: tuple[tuple[str, str, bool], ...], workload: str) -> None:
    references = tuple(
        OwnerReference(kind=kind, name=name, controller=controls) for kind, name, controls in owners
    )
    labels = {"pod-template-hash": "5d4f8"}
    made = "2025-12-02T19:00:07Z"
    metadata = Metadata(name="x", labels=labels, owner_references=references, creation_timestamp=made)
    assert Pod(metadata=metadata).workload == workload


def test_a_pod_without_such_a_label_is_its_replica_sets() -> None:
    owner = OwnerReference(kind="ReplicaSet", name="web-5d4f8", controller=True)
    assert Pod(metadata=Metadata(name="x", owner_references=(owner,))).workload == "ReplicaSet/web-5d4f8"
