"""Where an etcd is, and as whom it is asked: what a URL says. Pure, but for the files that it names."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

from podway.errors import InvalidArgument
from podway.store.material import Material

SCHEME = "etcd"
PORT = 2379
PREFIX = "podway"
SYSTEM = "system"
"""In place of a file of authorities: those that the system trusts."""

HINT = (
    "an etcd's URL is etcd://HOST:2379[,HOST:2379…][/PREFIX], with ?ca=FILE (or ca=system) for TLS, "
    "cert=FILE&key=FILE for a client's certificate, user=NAME&password-file=FILE for an account"
)

# urlsplit() knows one host only.
_URL = re.compile(rf"{SCHEME}://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?")
_PREFIX = re.compile(r"[-._A-Za-z0-9]+(/[-._A-Za-z0-9]+)*")
_HOST = re.compile(r"[-._A-Za-z0-9]+|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]")


class Access(msgspec.Struct, frozen=True):
    """The servers' URLs, below what all keys are, and as whom to ask. `authorities` None: those of the system."""

    servers: tuple[str, ...]
    prefix: str = PREFIX
    authorities: Material | None = None
    certificate: Material | None = None
    key: Material | None = None
    user: str = ""
    password: Material | None = None


def is_etcd(url: str) -> bool:
    """Tell whether a URL names an etcd."""
    return url.startswith(f"{SCHEME}:")


def read_url(url: str) -> Access:
    """Return what the URL of an etcd says. Raises InvalidArgument."""

    def wrong(problem: str) -> InvalidArgument:
        return InvalidArgument(f"no store can be opened at {url!r}: {problem}", hint=HINT)

    found = _URL.fullmatch(url)
    if found is None:
        raise wrong("it is no URL of this form")
    hosts, path, asked = found[1], found[2] or "", found[3] or ""
    if "@" in hosts:
        raise wrong("an account stands behind it, where `ps` shows no password: ?user=NAME&password-file=FILE")
    told = parse_qsl(asked, keep_blank_values=True)
    query = dict(told)
    if unknown := query.keys() - {"ca", "cert", "key", "user", "password-file"}:
        raise wrong(f"{', '.join(sorted(unknown))} means nothing")
    if len(query) < len(told) or "" in query.values():
        raise wrong("something is said twice, or left empty")
    for one, other in (("cert", "key"), ("user", "password-file")):
        if (one in query) is not (other in query):
            raise wrong(f"{one} and {other} belong together")
    prefix = path.strip("/") or PREFIX
    if not _PREFIX.fullmatch(prefix):
        raise wrong(f"{prefix!r} is no prefix: write letters, digits, '-', '.', '_', and '/' between them")
    scheme = "https" if "ca" in query or "cert" in query else "http"
    return Access(
        servers=tuple(f"{scheme}://{_server(one, wrong(f'{one!r} is no HOST:PORT'))}" for one in hosts.split(",")),
        prefix=prefix,
        authorities=_file(query, "ca", wrong) if query.get("ca") != SYSTEM else None,
        certificate=_file(query, "cert", wrong),
        key=_file(query, "key", wrong),
        user=query.get("user", ""),
        password=_file(query, "password-file", wrong),
    )


def _file(query: Mapping[str, str], name: str, wrong: Callable[[str], InvalidArgument]) -> Material | None:
    if name not in query:
        return None
    if not query[name].startswith("/"):
        raise wrong(f"{name} is no absolute path of a file")
    return Material(path=Path(query[name]))


def _server(text: str, error: InvalidArgument) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(PORT)
    if not _HOST.fullmatch(host) or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise error
    return f"{host}:{port}"
