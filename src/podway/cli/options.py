"""Which cluster a command works on: what is given before or behind it, and the store that follows from it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from podway.errors import LabError, NeedsRoot
from podway.lab.paths import DEFAULT_LAB, LABS, admin_config, lab_dir, lab_store

if TYPE_CHECKING:  # `podway --help` does without msgspec
    from podway.api.resource import Resource
    from podway.store.base import Everything, Store
    from podway.store.kubernetes.client import Client

T = TypeVar("T")

SNAPSHOT = "snapshot:"
"""What the URL of a snapshot (podway.preview.snapshot) begins with; the rest is the file's path."""


class GlobalOptions(NamedTuple):
    """`podway --store URL --lab NAME`; `store` is None if it was not given."""

    store: str | None
    lab: str

    def store_url(self) -> str:
        """Return the URL of the store to use: the one given, else the lab's.

        Raises InvalidArgument if the lab's name cannot be one, LabError if no such lab stands, and NeedsRoot.
        """
        if self.store is not None:
            return self.store
        from podway.lab.names import require_lab_name

        require_lab_name(self.lab)
        try:
            stands = lab_dir(self.lab).exists()
        except PermissionError as error:
            raise NeedsRoot(f"looking into the lab {self.lab!r}") from error
        if not stands:
            raise self.unknown_lab()
        return lab_store(self.lab)

    def unknown_lab(self) -> LabError:
        """Return the error for a lab that does not exist, where a store might have been meant, too."""
        from podway.lab.state import unknown

        error = unknown(self.lab)
        return LabError(error.message, hint=f"{error.hint}; for another cluster name its store: --store URL")

    @property
    def allocates(self) -> bool:
        """Whether who writes Services gives them their addresses: in Kubernetes its API server does."""
        if self.store is None:
            return not admin_config(self.lab).exists()
        from podway.store.open import is_kubernetes

        return not is_kubernetes(self.store)

    def _open(self, *, create: bool) -> Store:
        url = self.store_url()
        if self.store is None and (admin_config(self.lab).exists() or not url.startswith("sqlite:")):
            from podway.lab.facts import open_lab_store

            return open_lab_store(self.lab)
        return _open(url, create=create)

    def client(self) -> Client:
        """Return a way to the Kubernetes API that is meant: of the store given, the lab's if it is one, else of
        the kubeconfig. Raises InvalidArgument if the store given is no Kubernetes.
        """
        from podway.store.kubernetes.client import Client
        from podway.store.open import KUBERNETES, find_kubernetes

        if self.store is None and is_kubernetes_lab(self.lab):
            from podway.lab.facts import lab_access, lab_sockets

            return Client(lab_access(self.lab), lab_sockets(self.lab))
        return Client(find_kubernetes(self.store or f"{KUBERNETES}:"))

    def run(self, work: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
        """Open the store, run `work` with it, close it, return the answer.

        A missing store is made if `create` is true. Raises what opening and `work` raise.
        """
        import asyncio

        async def opened() -> T:
            store = self._open(create=create)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(opened())


def _open(url: str, *, create: bool) -> Store:
    if url.startswith(SNAPSHOT):
        from podway.preview.snapshot import read
        from podway.preview.store import SnapshotStore

        return SnapshotStore(read(Path(url.removeprefix(SNAPSHOT))))
    from podway.store.open import is_served, open_store, path_of

    if is_served(url):
        return open_store(url)
    path = path_of(url)
    if os.geteuid() != 0 and not os.access(path, os.R_OK | os.W_OK) and not _is_missing(path):
        raise NeedsRoot(f"reading the store {path}")
    return open_store(url, create=create)


async def read_all(store: Store, *, without: Collection[type[Resource]] = ()) -> Everything:
    """Return every object of a store but those of kinds left out, and tell on standard error what is rejected."""
    from podway.api.kinds import KINDS
    from podway.store.base import list_all

    found = await list_all(store, set(KINDS.values()) - set(without))
    for one in found.rejected:
        click.echo(f"podway: {one.error}", err=True)
    return found


async def read_network(store: Store) -> Everything:
    """Return every object that says something of the way of packets, which Secrets do not, as read_all does.

    So who may not read them can trace and verify.
    """
    from podway.api.kinds.secret import Secret

    return await read_all(store, without=(Secret,))


def is_kubernetes_lab(lab: str) -> bool:
    """Tell whether a lab stands that is a Kubernetes, as far as this user may see."""
    try:
        return admin_config(lab).exists()
    except PermissionError:
        return False


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except PermissionError:
        return False


F = TypeVar("F", bound=Callable[..., Any])


def store_option(**settings: Any) -> Callable[[F], F]:
    """Return the option that names the store; `settings` go to click."""
    text = (
        "The cluster's store, such as sqlite:///var/lib/podway/store.db, kubernetes:, "
        "kubernetes:///path/of/a/kubeconfig or etcd://HOST:2379, or snapshot:FILE to look at one. "
        "Without it: the lab's."
    )
    given = {"help": text, **settings}
    return click.option("--store", metavar="URL", callback=_remember, expose_value=False, **given)


def log_level_option(command: F) -> F:
    """Give a command that goes on running the option that says how much it logs."""
    return click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="How much it says on standard error.",
    )(command)


def metrics_option(command: F) -> F:
    """Give a command the option that says where its metrics are served."""
    return click.option(
        "--metrics",
        default="",
        metavar="ADDRESS:PORT",
        callback=check_endpoint,
        help="Serve metrics for Prometheus there, to whoever asks.  [default: nowhere]",
    )(command)


def check_endpoint(_: click.Context, __: click.Parameter, text: str) -> str:
    """Check an option that names an address and a port."""
    from podway.metrics.server import parse_endpoint

    if text:
        parse_endpoint(text)
    return text


def lab_option(**settings: Any) -> Callable[[F], F]:
    """Return the option that names the lab; `settings` go to click."""
    return click.option(
        "--lab",
        metavar="NAME",
        callback=_remember,
        expose_value=False,
        help="The lab that commands work on.",
        shell_complete=complete_labs,
        **settings,
    )


def cluster_options(command: F) -> F:
    """Give a command the options that say which cluster it works on: they may stand behind it, too."""
    return store_option()(lab_option()(command))


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Keep what was given as the context's GlobalOptions; what stands further right wins."""
    options = ctx.find_object(GlobalOptions) or GlobalOptions(None, DEFAULT_LAB)
    ctx.obj = options._replace(**{str(param.name): value}) if value is not None else options


def complete_labs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a lab's name."""
    try:
        return [path.name for path in sorted(LABS.iterdir()) if path.name.startswith(incomplete)]
    except OSError:
        return []
