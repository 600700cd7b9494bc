"""Stores by URL."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from podway.errors import InvalidArgument
from podway.store.base import Store
from podway.store.etcd import access as etcd

if TYPE_CHECKING:
    from podway.store.kubernetes.access import Access

SQLITE = "sqlite://"
KUBERNETES = "kubernetes"

URLS = (
    "a store's URL is sqlite:///absolute/path/of/the/file, kubernetes: (this pod's service account, else "
    "KUBECONFIG or ~/.kube/config), kubernetes:///absolute/path/of/a/kubeconfig, with ?context=NAME behind it, or "
    "etcd://HOST:2379[,HOST:2379…][/PREFIX]"
)


def open_store(url: str, *, create: bool = True, later: bool = False) -> Store:
    """Open the store at a URL: `sqlite:///absolute/path`, `kubernetes:`, `kubernetes:///path/of/a/kubeconfig`, or
    `etcd://host:2379`.

    A missing file is made if `create` is true. With `later` it is opened when it is first needed, and what is
    wrong with it is raised then. Servers are never asked before something is needed of them.

    Raises InvalidArgument if the URL names no store, InvalidInput for what is no kubeconfig, and StoreUnavailable,
    StoreDamaged or StoreTooNew.
    """
    if is_kubernetes(url):
        from podway.store.kubernetes.access import find_access
        from podway.store.kubernetes.store import KubernetesStore

        path, context = _kubeconfig(url)
        return KubernetesStore(lambda: find_access(path, context), later=later)
    if etcd.is_etcd(url):
        from podway.store.etcd.store import EtcdStore

        return EtcdStore(etcd.read_url(url))
    path = path_of(url)
    from podway.store.sqlite import SqliteStore

    return SqliteStore(path, create=create, later=later)


def is_kubernetes(url: str) -> bool:
    """Tell whether a URL names a Kubernetes API."""
    return url == KUBERNETES or url.startswith(f"{KUBERNETES}:")


def is_served(url: str) -> bool:
    """Tell whether a store is servers, and not a file of this machine's.

    Who may read what is then theirs to say, so agents get no authority's key, and the controller signs.
    """
    return is_kubernetes(url) or etcd.is_etcd(url)


def find_kubernetes(url: str) -> "Access":
    """Return where the Kubernetes API is that a URL names, and who asks it.

    Raises InvalidArgument if it names another store, InvalidInput and StoreUnavailable.
    """
    from podway.store.kubernetes.access import find_access

    if not is_kubernetes(url):
        raise InvalidArgument(f"{url!r} is no Kubernetes", hint=URLS)
    return find_access(*_kubeconfig(url))


def check_url(url: str) -> None:
    """Raise InvalidArgument if a URL names no store."""
    if is_kubernetes(url):
        _kubeconfig(url)
    elif etcd.is_etcd(url):
        etcd.read_url(url)
    else:
        path_of(url)


def path_of(url: str) -> Path:
    """Return the file that the URL of an SQLite store names. Raises InvalidArgument if it names none."""
    path = url.removeprefix(SQLITE)
    if not url.startswith(SQLITE) or not path.startswith("/") or path.endswith("/"):
        raise InvalidArgument(f"no store can be opened at {url!r}", hint=URLS)
    return Path(path)


def _kubeconfig(url: str) -> tuple[Path | None, str]:
    """Return the kubeconfig that a URL names, None if it names none, and the context. Raises InvalidArgument."""
    parts = urlsplit(url if ":" in url else f"{url}:")
    query = parse_qs(parts.query)
    if parts.netloc or parts.fragment or query.keys() - {"context"} or parts.path.endswith("/"):
        raise InvalidArgument(f"no store can be opened at {url!r}", hint=URLS)
    if parts.path and not parts.path.startswith("/"):
        raise InvalidArgument(f"no store can be opened at {url!r}: its path is not absolute", hint=URLS)
    return Path(parts.path) if parts.path else None, query.get("context", [""])[-1]
