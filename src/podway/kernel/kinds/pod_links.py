"""Host ends of pods. Making and removing them is the agent's (`wire`, `unwire`)."""

from collections.abc import Mapping, Sequence

from podway.api.lease import Attachment
from podway.errors import KernelError
from podway.kernel import leases
from podway.kernel.engine import Compared, one_by_one
from podway.kernel.kinds.inventory import Inventory
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from podway.plan.changes import Change
from podway.plan.objects import Link, NodePlan


class PodLinks:
    """The links of pods, among the devices of the inventory's latest look."""

    name = "link"
    repairs_only = True
    compared: Compared = False

    def __init__(self, connection: Connection, inventory: Inventory) -> None:
        self._connection = connection
        self._inventory = inventory

    def wanted(self, plan: NodePlan) -> Mapping[str, Link]:
        """Return the plan's links by name."""
        return {link.key: link for link in plan.links}

    def list(self, plan: NodePlan) -> Mapping[str, Link]:
        """Return our links by the name they should have, which their alternative name tells."""
        del plan
        found = {}
        for record in filter(leases.is_pod_link, self._inventory.by_index.values()):
            key = leases.altname(record)
            attachment = Attachment.from_altname(key)
            found[attachment.link if attachment else record.name] = Link(
                record.name, key, record.alias, record.mac, record.mtu, record.group, record.up
            )
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Mend attributes."""
        failures = one_by_one(changes, self._repair)
        self._inventory.look()  # names may have changed
        return failures

    def _repair(self, change: Change) -> None:
        have: Link = change.have
        want: Link = change.want
        index, label = links.find(self._connection, have.name).index, want.name
        requests = []
        if have.name != want.name:
            # Before 6.2 the kernel renames no device that is up.
            requests += [links.set_down(index, label), links.change(index, rename=want.name, label=label)]
        if have.altname != want.altname:
            requests.append(links.altname(index, want.altname, label=label))
        requests.append(
            links.change(
                index,
                up=want.up,
                alias=None if have.alias == want.alias else want.alias,
                mac="" if have.mac == want.mac else want.mac,
                mtu=0 if have.mtu == want.mtu else want.mtu,
                group=None if have.group == want.group else want.group,
                label=label,
            )
        )
        self._connection.transact(requests)
