"""CNI_ARGS: `KEY=VALUE` pairs that a runtime adds to a request, as kubelets, containerd and podman do.

Read as libcni does (pkg/types/args.go, LoadArgs): an unknown key is an error unless IgnoreUnknown is set.
"""

from ipaddress import ip_interface

import msgspec

from podway.api.addresses import Address
from podway.cni.names import NAME
from podway.cni.spec import Code
from podway.errors import CniError

_POD_KEYS = {
    "K8S_POD_NAMESPACE": "namespace",
    "K8S_POD_NAME": "name",
    "K8S_POD_UID": "uid",
    "K8S_POD_INFRA_CONTAINER_ID": "infra_container",
}
_KNOWN = (*_POD_KEYS, "IP", "IgnoreUnknown")
_TRUE, _FALSE = ("1", "true"), ("0", "false")
_MAX_NAME = 253
"""Longest name of a Kubernetes object: a DNS subdomain (RFC 1123)."""


class PodReference(msgspec.Struct, frozen=True, kw_only=True):
    """Which pod a container belongs to, as far as the runtime says."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    infra_container: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace and self.name else ""


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """What CNI_ARGS says: the pod, and addresses wanted for it."""

    pod: PodReference = PodReference()
    addresses: tuple[Address, ...] = ()


def parse_arguments(text: str) -> Arguments:
    """Read the value of CNI_ARGS; a key given twice counts as given last. Raises CniError."""
    given = dict(_pair(part) for part in text.split(";") if part)
    ignore = given.get("IgnoreUnknown", "false").lower()
    if ignore not in _TRUE + _FALSE:
        raise _invalid(f"IgnoreUnknown={ignore}", "is neither true nor false", "say IgnoreUnknown=1")
    unknown = [key for key in given if key not in _KNOWN]
    if unknown and ignore in _FALSE:
        raise _invalid(", ".join(unknown), "unknown", f"add IgnoreUnknown=1, or use only {', '.join(_KNOWN)}")
    return Arguments(
        pod=PodReference(**{field: _name(key, given.get(key, "")) for key, field in _POD_KEYS.items()}),
        addresses=tuple(_address(part) for part in given.get("IP", "").split(",") if part),
    )


def _pair(part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals or not key or "=" in value:
        raise _invalid(repr(part), "is no KEY=VALUE", "separate pairs by semicolons: A=1;B=2")
    return key, value


def _name(key: str, value: str) -> str:
    if value and (len(value) > _MAX_NAME or not NAME.fullmatch(value)):
        raise _invalid(f"{key}={value}", "is no name", "use letters, digits, '_', '.' and '-'")
    return value


def _address(text: str) -> Address:
    try:
        return ip_interface(text).ip
    except ValueError as error:
        raise _invalid(f"IP={text}", str(error), "state an address such as IP=10.244.1.7") from None


def _invalid(what: str, problem: str, hint: str) -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: {what}: {problem}", hint=hint)
