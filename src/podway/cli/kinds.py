"""How commands are told which objects: by kind, name and namespace."""

import difflib
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from podway.api.resources import Key, Node, Resource, subject
from podway.cli.complete import complete_namespaces, objects
from podway.cli.views import VIEW_BY_NAME, VIEWS, View

DEFAULT_NAMESPACE = "default"


class KindName(click.ParamType[View]):
    """A kind of object as people call it: `pods`, `pool`, `ns`."""

    name = "kind"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> View:
        """Return the kind's view; fails, naming the nearest kind, if there is none."""
        if isinstance(value, View):
            return value
        view = VIEW_BY_NAME.get(str(value).lower())
        if view is None:
            close = difflib.get_close_matches(str(value).lower(), VIEW_BY_NAME, n=1)
            known = ", ".join(view.names[0] for view in VIEWS)
            hint = f"did you mean {close[0]}?" if close else f"known kinds: {known}"
            self.fail(f"{value!r} is not a kind; {hint}", param, ctx)
        return view

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the kinds that a word may become, by their usual names where these fit."""
        usual = [view.names[0] for view in VIEWS if view.names[0].startswith(incomplete)]
        return [CompletionItem(name) for name in usual or VIEW_BY_NAME if name.startswith(incomplete)]


namespace_option = click.option(
    "-n",
    "--namespace",
    metavar="NS",
    help="The namespace.  [default: default]",
    shell_complete=complete_namespaces,
)


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the NAMEs after a KIND; sessions and routes are named by their node."""
    view = ctx.params.get("view")
    if not isinstance(view, View):
        return []
    given = ctx.params.get("names") or ()
    kind = view.kind or Node
    here = (ctx.params.get("namespace") or DEFAULT_NAMESPACE) if kind.NAMESPACED else None
    names = (obj.metadata.name for obj in objects(ctx, kind, namespace=here))
    return [name for name in names if name.startswith(incomplete) and name not in given]


def complete_keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete KIND/NAME, the kind by one of its usual names."""
    typed, _, name = incomplete.partition("/")
    here = ctx.params.get("namespace") or DEFAULT_NAMESPACE
    return [
        f"{called}/{obj.metadata.name}"
        for view in VIEWS
        if view.kind and (called := next((one for one in view.names[1::-1] if one.startswith(typed)), ""))
        for obj in objects(ctx, view.kind, namespace=here if view.kind.NAMESPACED else None)
        if obj.metadata.name.startswith(name)
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names what somebody may have meant; empty if nothing is known."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ""


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


def key_of(kind: type[Resource], name: str, namespace: str | None) -> Key:
    """Return the key of an object of this kind and name; `namespace` None is the default one."""
    return (kind.KIND, (namespace or DEFAULT_NAMESPACE) if kind.NAMESPACED else "", name)
