"""How commands are told which objects: by kind, name and namespace."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import click

from podway.api.kinds.node import Node
from podway.api.resource import Key, Resource, subject
from podway.cli.complete import complete_namespaces, objects
from podway.cli.views import VIEW_BY_NAME, VIEWS, View
from podway.errors import InvalidArgument
from podway.suggestion import did_you_mean

DEFAULT_NAMESPACE = "default"

KUBERNETES_OWN = frozenset(
    [
        "endpoints",
        "ep",
        "deployments",
        "deployment",
        "deploy",
        "replicasets",
        "rs",
        "statefulsets",
        "sts",
        "daemonsets",
        "daemonset",
        "ds",
        "jobs",
        "job",
        "cronjobs",
        "cj",
        "ingresses",
        "ingress",
        "ing",
        "configmaps",
        "configmap",
        "cm",
        "serviceaccounts",
        "sa",
        "events",
        "ev",
        "persistentvolumes",
        "pv",
        "persistentvolumeclaims",
        "pvc",
        "customresourcedefinitions",
        "crd",
        "roles",
        "rolebindings",
        "clusterroles",
        "all",
    ]
)
"""Kinds of Kubernetes' that are none of a pod network's."""

MEANT = {
    "agents": "`podway status`",
    "labs": "`podway lab list`",
    "interfaces": "`podway status NODE`, or `podway describe pod NAME`",
    "links": "`podway status NODE`, or `podway describe pod NAME`",
    "addresses": "`podway get pods`, or `podway get nodes`",
    "ips": "`podway get pods`, or `podway get nodes`",
    "workloadendpoints": "`podway get pods`",
    "ciliumendpoints": "`podway get pods`",
    "ciliumnodes": "`podway get nodes`",
    "ipamblocks": "`podway get blocks`",
    "blockaffinities": "`podway get blocks`",
    "subnets": "`podway get blocks`",
    "ranges": "`podway get blocks`",
    "sessions": "`podway get peers`",
    "neighbors": "`podway get peers`",
    "neighbours": "`podway get peers`",
    "bgp": "`podway get peers`",
    "reflectors": "`podway get peers`",
    "bgpconfigurations": "`podway get config`",
    "felixconfigurations": "`podway get config`",
    "networks": "`podway get pools`, or `podway get config`",
    "policies": "`podway get networkpolicies`, or `podway get clusternetworkpolicies`",
    "policy": "`podway get networkpolicies`, or `podway policy list POD`",
    "adminnetworkpolicies": "`podway get clusternetworkpolicies`",
    "ciliumnetworkpolicies": "`podway get networkpolicies`",
    "globalnetworkpolicies": "`podway get clusternetworkpolicies`",
    "tunnels": "`podway get routes`",
}
"""What people look for under other names than ours, and where it is."""


class Request(NamedTuple):
    """Objects that a command line names: of one kind all, or those of these (namespace, name).

    The namespace is None where none was stated.
    """

    view: View
    names: tuple[tuple[str | None, str], ...]


def find_view(word: str) -> View:
    """Return the kind that people call so: `pods`, `po`, `IPPool`. Raises InvalidArgument with what is near."""
    called = word.lower().partition(".podway.io")[0]
    if view := VIEW_BY_NAME.get(called):
        return view
    if meant := MEANT.get(called) or MEANT.get(f"{called}s"):
        hint = f"did you mean {meant}?"
    elif called in KUBERNETES_OWN:
        hint = f"that is Kubernetes' own: `kubectl get {called}`; Podway has {_every_kind()}"
    else:
        hint = did_you_mean(called, VIEW_BY_NAME, otherwise=f"there are {_every_kind()}")
    raise InvalidArgument(f"{word!r} is not a kind that Podway knows", hint=hint)


def read_requests(words: Sequence[str], namespace: str | None) -> tuple[Request, ...]:
    """Read `KIND [NAME]…`, `KIND,KIND` or `KIND/NAME…`; a NAME may be NAMESPACE/NAME. Raises InvalidArgument."""
    first, *rest = words
    if "/" in first:
        return tuple(
            Request(view, ((space, name),)) for view, space, name in (read_target(w, namespace) for w in words)
        )
    views = [find_view(word) for word in first.split(",") if word]
    if rest and len(views) != 1:
        raise InvalidArgument(
            f"{first!r} is several kinds, and cannot be followed by names", hint="write KIND/NAME KIND/NAME..."
        )
    return tuple(
        Request(view, tuple(read_name(name, namespace, namespaced=_namespaced(view)) for name in rest))
        for view in views
    )


def read_target(text: str, namespace: str | None) -> tuple[View, str | None, str]:
    """Read `KIND/NAME` or `KIND/NAMESPACE/NAME`: kind, namespace (None: not stated) and name.

    Of a kind of which there is one object the name may be left out. Raises InvalidArgument.
    """
    called, _, name = text.partition("/")
    view = find_view(called)
    if view.kind:
        name = name or view.kind.ONLY
    if not name:
        raise InvalidArgument(f"{text!r} names no object", hint=f"write {called}/NAME")
    return view, *read_name(name, namespace, namespaced=_namespaced(view))


def read_name(text: str, namespace: str | None, *, namespaced: bool = True) -> tuple[str | None, str]:
    """Read `NAME` or `NAMESPACE/NAME`; `namespace` is that of -n. Raises InvalidArgument if the two differ."""
    space, slash, name = text.rpartition("/")
    if not slash:
        return namespace, text
    if not namespaced or not space or not name or "/" in space:
        form = "NAMESPACE/NAME" if namespaced else "NAME"
        raise InvalidArgument(f"{text!r} names no object", hint=f"write {form}")
    if namespace not in (None, space):
        raise InvalidArgument(
            f"{text} is not in the namespace {namespace!r} of -n", hint="leave one of the two out"
        )
    return space, name


def key_of(kind: type[Resource], name: str, namespace: str | None) -> Key:
    """Return the key of an object of this kind and name; `namespace` None is the default one."""
    return (kind.KIND, (namespace or DEFAULT_NAMESPACE) if kind.NAMESPACED else "", name)


def read_key(text: str, namespace: str | None) -> Key:
    """Read the `KIND/NAME` of an object in the store. Raises InvalidArgument."""
    view, space, name = read_target(text, namespace)
    return key_of(kind_of(view), name, space)


def kind_of(view: View) -> type[Resource]:
    """Return the kind of objects in the store that a view shows. Raises InvalidArgument if it shows others."""
    if view.kind is None:
        raise InvalidArgument(
            f"{view.names[0]} are no objects of the store: they cannot be changed or deleted",
            hint=f"they follow from the others; look at them: podway get {view.names[0]}",
        )
    return view.kind


namespace_option = click.option(
    "-n",
    "--namespace",
    metavar="NS",
    help="The namespace.  [default: default]",
    shell_complete=complete_namespaces,
)


def complete_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete `KIND [NAME]…` or `KIND/NAME…`; sessions and routes are named by their node."""
    given = ctx.params.get(param.name or "") or ()
    if "/" in (given[0] if given else incomplete):
        return complete_keys(ctx, param, incomplete)
    if not given:
        usual = [view.names[0] for view in VIEWS if view.names[0].startswith(incomplete)]
        return [name for name in usual or VIEW_BY_NAME if name.startswith(incomplete)]
    view = VIEW_BY_NAME.get(given[0].lower())
    return [name for name in _names(ctx, view, incomplete) if name not in given] if view else []


def complete_keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete KIND/NAME, the kind by one of its usual names."""
    typed, slash, name = incomplete.partition("/")
    views = [VIEW_BY_NAME[typed.lower()]] if slash and typed.lower() in VIEW_BY_NAME else VIEWS
    return [
        f"{called}/{found}"
        for view in views
        if view.kind
        and (called := typed if slash else next((one for one in view.names[1::-1] if one.startswith(typed)), ""))
        for found in _names(ctx, view, name)
    ]


def _names(ctx: click.Context, view: View, incomplete: str) -> list[str]:
    """Return the names that a word may become, as NAMESPACE/NAME where one is typed so."""
    kind = view.kind or Node
    stated, slash, _ = incomplete.partition("/")
    here = stated if slash else ctx.params.get("namespace") or DEFAULT_NAMESPACE
    found = objects(ctx, kind, namespace=here if kind.NAMESPACED else None)
    names = [f"{stated}/{obj.metadata.name}" if slash else obj.metadata.name for obj in found]
    return [name for name in names if name.startswith(incomplete)]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names what somebody may have meant; empty if nothing is known."""
    names = sorted(set(known))
    there = f"there are {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ""
    return did_you_mean(name, names, otherwise=there, most=3, cutoff=0.5)


def nearest_key(wanted: Key, known: Iterable[Key]) -> str:
    """Return the hint for an object that does not exist: another namespace's of this name, or near names."""
    same_kind = [other for other in known if other[0] == wanted[0]]
    elsewhere = sorted(other[1] for other in same_kind if other[2] == wanted[2])
    if elsewhere:
        return f"there is {subject((wanted[0], elsewhere[0], wanted[2]))}: say -n {elsewhere[0]}"
    here = [other[2] for other in same_kind if other[1] == wanted[1]]
    return (
        nearest(wanted[2], here)
        or f"there is no {wanted[0]} at all{f' in namespace {wanted[1]}' * bool(wanted[1])}"
    )


def _namespaced(view: View) -> bool:
    return view.kind is not None and view.kind.NAMESPACED


def _every_kind() -> str:
    return ", ".join(view.names[0] for view in VIEWS)
