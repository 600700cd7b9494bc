"""`podway apply` and `podway delete`: the cluster's objects are changed when the whole change is right."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import click
import msgspec

from podway.api.checked import RejectedObject
from podway.api.decode import Manifest
from podway.api.kinds import KINDS
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.resource import Key, Resource, key, of_kind, subject
from podway.api.rules import check_change, check_deletion
from podway.cli.gone_node import aftermath, before_deletion, warning
from podway.cli.help import examples
from podway.cli.kinds import complete_words, key_of, kind_of, namespace_option, nearest_key, read_requests
from podway.cli.manifests import check_each, merge, placed_in, read_manifests
from podway.cli.options import GlobalOptions, cluster_options, read_all
from podway.errors import InvalidArgument, NotFound
from podway.preview.interruptions import interruptions
from podway.services.allocation import addressed
from podway.store.base import Store
from podway.store.leases import forget_lease

_POLICIES = (NetworkPolicy.KIND, ClusterNetworkPolicy.KIND)

_ADDRESSED = frozenset({IPPool.KIND, Service.KIND, Namespace.KIND})
"""Kinds whose objects decide which addresses outside Services have."""

files_option = click.option(
    "-f",
    "--filename",
    "filenames",
    metavar="FILE",
    multiple=True,
    type=click.Path(allow_dash=True),
    help="A manifest in YAML or JSON; - is standard input. Repeatable.",
)


@click.command(
    epilog=examples(
        "podway apply -f pools.yaml",
        "podway apply -f pools.yaml -f config.yaml",
        "podway get pool ipv4 -o yaml > pool.yaml    # edit it, then apply it",
        "podway plan -f pools.yaml                   # what it would change, without doing it",
    )
)
@files_option
@namespace_option
@cluster_options
@click.pass_obj
def apply(options: GlobalOptions, filenames: tuple[str, ...], namespace: str | None) -> None:
    """Create or change objects from manifests.

    All of them are checked first, also against the cluster; nothing is written unless all are right. Status,
    and annotations that a manifest does not name, stay as they are.
    """
    manifests = read_manifests(filenames, namespace)
    check_each(manifests)

    async def work(store: Store) -> None:
        listing = await read_all(store)
        stored, rejected = {key(obj): obj for obj in listing.items}, {one.key: one for one in listing.rejected}
        wanted = checked_change(stored, manifests, allocates=options.allocates)
        slips = _slips(stored, wanted)
        for known, new in wanted.items():
            for slip in slips.get(known, ()):
                click.echo(f"note: {slip}", err=True)
            for interruption in interruptions(stored.get(known), new):
                click.echo(f"note: {interruption}", err=True)
            click.echo(f"{subject(known)} {await _put(store, new, stored.get(known), rejected.get(known))}")
        if options.allocates and _ADDRESSED.intersection(kind for kind, *_ in wanted):
            await _give_addresses(store)

    options.run(work, create=True)


@click.command(
    epilog=examples(
        "podway delete pool databases",
        "podway delete pod/web pod/shop/db",
        "podway delete -f pools.yaml",
    )
)
@click.argument("words", metavar="[KIND NAME... | KIND/NAME...]", nargs=-1, shell_complete=complete_words)
@files_option
@namespace_option
@cluster_options
@click.pass_obj
def delete(
    options: GlobalOptions,
    words: tuple[str, ...],
    filenames: tuple[str, ...],
    namespace: str | None,
) -> None:
    """Delete objects, by KIND and NAME or by the manifests that made them.

    Nothing is deleted unless all exist and nothing that stays needs them. In a lab, whose pods nobody else runs, a
    pod ends with its object. With a node goes its agent's lease: another machine may take its name at once.
    """
    if bool(words) == bool(filenames):
        raise click.UsageError("give either KIND NAME..., or KIND/NAME..., or -f FILE")
    if filenames:
        unwanted = [key(manifest.resource) for manifest in read_manifests(filenames, namespace)]
    else:
        unwanted = _named(words, namespace)

    async def find(store: Store) -> list[Resource | RejectedObject]:
        listing = await read_all(store)
        stored, rejected = {key(obj): obj for obj in listing.items}, {one.key: one for one in listing.rejected}
        check_deletions(stored, [wanted for wanted in unwanted if wanted not in rejected])
        return [rejected[wanted] if wanted in rejected else stored[wanted] for wanted in dict.fromkeys(unwanted)]

    async def remove(store: Store) -> None:
        for obj in found:
            if not (isinstance(obj, Pod) and options.store is None):
                kind, where, name = obj.key if isinstance(obj, RejectedObject) else key(obj)
                if kind == Node.KIND and (NodeLease.KIND, LEASES, name) not in unwanted:
                    await forget_lease(store, name)  # first: an agent that lives renews it, and then registers
                await store.delete(KINDS[kind], name, namespace=where)
                click.echo(f"{subject((kind, where, name))} deleted")
        if options.allocates and any(isinstance(obj, Service) for obj in found):
            await _give_addresses(store)

    found = options.run(find)
    if options.store is None:
        _end_in_lab(options.lab, [obj for obj in found if isinstance(obj, Pod)])
    nodes = [obj for obj in found if isinstance(obj, Node)]
    known = [options.run(partial(before_deletion, node=node)) for node in nodes]
    for node in nodes:
        if told := options.run(partial(warning, node=node, lab=options.store is None)):
            click.echo(told, err=True)
    options.run(remove)
    for node, before in zip(nodes, known, strict=True):
        click.echo(f"{subject(key(node))}: {options.run(partial(aftermath, node=node, before=before))}", err=True)


async def _give_addresses(store: Store) -> None:
    from podway.controller.addressing import give_addresses

    await give_addresses(store)


def _slips(stored: Mapping[Key, Resource], wanted: Mapping[Key, Resource]) -> dict[Key, list[str]]:
    """Return in words what is probably not meant of policies that are new or another than before."""
    changed = {known for known, new in wanted.items() if known[0] in _POLICIES and new != stored.get(known)}
    if not changed:
        return {}
    from podway.policy.lint import lint

    found: dict[Key, list[str]] = {}
    for known, (field, problem, hint) in lint({**stored, **wanted}.values(), pods_may_come=True):
        if known in changed:
            found.setdefault(known, []).append(f"{subject(known)}: {field}: {problem}: {hint}")
    return found


def _end_in_lab(lab: str, pods: Sequence[Pod]) -> None:
    """Do what a lab's kubelet would: end pods, detach them, and remove their objects."""
    if pods:
        from podway.lab.pods import remove_all

        remove_all(lab, pods, report=lambda pod: click.echo(f"{subject(key(pod))} deleted"))


def _named(words: Sequence[str], namespace: str | None) -> list[Key]:
    """Return the keys of the objects that words name. Raises InvalidArgument if a kind stands without a name."""
    found = []
    for request in read_requests(words, namespace):
        if not request.names:
            raise InvalidArgument(
                f"delete which {request.view.names[0]}?",
                hint=f"name them: podway delete {' '.join(words)} NAME...",
            )
        found += [key_of(kind_of(request.view), name, space) for space, name in request.names]
    return found


def checked_change(
    stored: Mapping[Key, Resource], manifests: Sequence[Manifest], *, allocates: bool = False
) -> dict[Key, Resource]:
    """Return what manifests make of the objects that they name, checked together with all others.

    With `allocates` Services get addresses: nobody else gives them any. Raises InvalidObject, with the place in
    the manifest.
    """
    wanted = {}
    for manifest in manifests:
        with placed_in(manifest):
            wanted[key(manifest.resource)] = merge(manifest.resource, stored.get(key(manifest.resource)))
    for manifest in manifests if allocates else ():
        with placed_in(manifest):
            _allocate(key(manifest.resource), wanted, stored)
    after = tuple({**stored, **wanted}.values())
    for manifest in manifests:
        new = wanted[key(manifest.resource)]
        old = stored.get(key(new))
        if new != old:
            with placed_in(manifest):
                check_change(new, after, old=old)
    return wanted


def _allocate(known: Key, wanted: dict[Key, Resource], stored: Mapping[Key, Resource]) -> None:
    """Give an object that is wanted addresses if it is a Service that needs some. Raises InvalidObject."""
    new, old = wanted[known], stored.get(known)
    if not isinstance(new, Service) or not (old is None or isinstance(old, Service)):
        return
    after = {**stored, **wanted}
    ranges = [one for config in of_kind(NetworkConfig, after.values()) for one in config.spec.service_networks]
    others = [one for one in of_kind(Service, after.values()) if key(one) != known]
    wanted[known] = addressed(new, old, ranges, others)


def check_deletions(stored: Mapping[Key, Resource], unwanted: Collection[Key]) -> None:
    """Check that objects exist and that nothing which stays needs them. Raises NotFound or InvalidObject."""
    staying = [obj for obj in stored.values() if key(obj) not in unwanted]
    for wanted in unwanted:
        if wanted not in stored:
            raise NotFound(
                f"{subject(wanted)} does not exist; nothing was deleted", hint=nearest_key(wanted, stored)
            )
        check_deletion(stored[wanted], staying)


async def _put(store: Store, new: Resource, old: Resource | None, rejected: RejectedObject | None) -> str:
    """Write one object, in place of one that is rejected, too; return what became of it."""
    if rejected is not None:
        version = rejected.found.metadata.resource_version if rejected.found else ""
        metadata = msgspec.structs.replace(new.metadata, resource_version=version)
        await store.update(msgspec.structs.replace(new, metadata=metadata))
        return "replaced"
    if old is None:
        await store.create(new)
        return "created"
    stored = await store.update(new)
    return "unchanged" if stored.metadata.resource_version == old.metadata.resource_version else "configured"
