"""Pod: what has addresses of the pod network; Podway reads where it runs, what it serves, and its addresses."""

import re
from collections.abc import Iterator
from datetime import datetime
from ipaddress import ip_address
from typing import ClassVar, Literal

import msgspec

from podway.api.addresses import Address
from podway.api.columns import AGE, LABELS, NAME, NAMESPACE, Column
from podway.api.fields import SUBDOMAIN, Problem, check_address, check_name, check_port, check_timestamp
from podway.api.meta import Record
from podway.api.resource import Names, Resource

TEMPLATE_HASH = "pod-template-hash"
"""The label by which a Deployment tells its ReplicaSets' pods apart; it ends the ReplicaSet's name."""

_KIND = re.compile(r"[A-Za-z0-9]{1,63}")
_SCHEDULED = re.compile(r"-(\d{8,9})$")
"""How a CronJob's Jobs end: the minute that they were due, since 1970."""
_NEAR = 7 * 24 * 60
"""Minutes between that and a pod's creation: a Job may begin late, and repeat pods that failed."""


class ContainerPort(Record, frozen=True, kw_only=True):
    """A port that a container serves; policies may call it by its name."""

    name: str = ""
    container_port: int
    protocol: str = "TCP"


class Container(Record, frozen=True, kw_only=True):
    """One of a pod's containers; an init container that restarts `Always` serves as long as the pod does."""

    name: str = ""
    restart_policy: str = ""
    ports: tuple[ContainerPort, ...] = ()


class PodSpec(Record, frozen=True, kw_only=True):
    """Where a pod is to run, and what it serves."""

    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()

    @property
    def ports(self) -> tuple[ContainerPort, ...]:
        """The ports of all containers that serve as long as the pod does."""
        sidecars = (container for container in self.init_containers if container.restart_policy == "Always")
        return tuple(port for container in (*self.containers, *sidecars) for port in container.ports)


class PodAddress(Record, frozen=True, kw_only=True):
    """One entry of a pod's `status.podIPs`."""

    ip: str


class PodStatus(Record, frozen=True, kw_only=True):
    """What is observed of a pod."""

    phase: str = "Pending"
    # Kubernetes writes these two with capitals that no rule gives.
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodAddress, ...] = msgspec.field(default=(), name="podIPs")


class Pod(Resource, frozen=True, kw_only=True):
    """A group of containers that share one network namespace."""

    KIND: ClassVar = "Pod"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("pods", short=("po",))
    COLUMNS: ClassVar = (
        NAMESPACE,
        NAME,
        Column("NODE", lambda pod, _: pod.spec.node_name),
        Column("IPS", lambda pod, _: ",".join(map(str, pod.addresses))),
        Column("PHASE", lambda pod, _: pod.status.phase),
        AGE,
        LABELS,
    )
    IN_VIEW: ClassVar = True
    INDICES: ClassVar = {"address": lambda pod: pod.held}

    api_version: Literal["v1"] = "v1"
    kind: Literal["Pod"] = "Pod"
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The pod's addresses, at most one a family."""
        return tuple(ip_address(entry.ip) for entry in self.status.pod_ips)

    @property
    def held(self) -> tuple[str, ...]:
        """The addresses that are its own now, as they are written: not the host's, none once it has finished."""
        if self.spec.host_network or self.status.phase in ("Succeeded", "Failed"):
            return ()
        return tuple(entry.ip for entry in self.status.pod_ips)

    @property
    def workload(self) -> str:
        """What it is part of, as `KIND/NAME`: who controls it, and who controls that where its name tells so.

        A ReplicaSet is its Deployment's, a Job its CronJob's. Empty for a pod that nobody controls, and if what it
        says cannot be a kind and a name: an API server takes words of any length and form there.
        """
        for owner in self.metadata.owner_references:
            if not owner.controller:
                continue
            if not _KIND.fullmatch(owner.kind) or not SUBDOMAIN.fullmatch(owner.name):
                return ""
            suffix = f"-{self.metadata.labels.get(TEMPLATE_HASH, '')}"
            if owner.kind == "ReplicaSet" and owner.name.endswith(suffix):
                return f"Deployment/{owner.name.removesuffix(suffix)}"
            if owner.kind == "Job" and self._is_near(_SCHEDULED.search(owner.name)):
                return f"CronJob/{_SCHEDULED.sub('', owner.name)}"
            return f"{owner.kind}/{owner.name}"
        return ""

    def _is_near(self, due: re.Match[str] | None) -> bool:
        """Tell whether a number is a minute at about which the pod was created, and no date, say: 20261128."""
        created = self.metadata.creation_timestamp
        if due is None or not created or any(check_timestamp("metadata.creationTimestamp", created)):
            return False
        return abs(datetime.fromisoformat(created).timestamp() / 60 - int(due[1])) < _NEAR

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the node's name, the containers' ports and the addresses."""
        if self.spec.node_name:
            yield from check_name("spec.nodeName", self.spec.node_name)
        for field, containers in (
            ("containers", self.spec.containers),
            ("initContainers", self.spec.init_containers),
        ):
            for index, container in enumerate(containers):
                for place, port in enumerate(container.ports):
                    where = f"spec.{field}[{index}].ports[{place}].containerPort"
                    yield from check_port(where, port.container_port)
        for index, entry in enumerate(self.status.pod_ips):
            yield from check_address(f"status.podIPs[{index}].ip", entry.ip)
