"""How commands are told which objects: by kind, name and namespace."""

import difflib

import click

from podway.api.resources import Key, Resource
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


namespace_option = click.option("-n", "--namespace", metavar="NS", help="The namespace.  [default: default]")


def key_of(kind: type[Resource], name: str, namespace: str | None) -> Key:
    """Return the key of an object of this kind and name; `namespace` None is the default one."""
    return (kind.KIND, (namespace or DEFAULT_NAMESPACE) if kind.NAMESPACED else "", name)
