"""Secret: values that nobody is shown. It is stored as it is, but shown only redacted (podway.api.encode)."""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import ClassVar, Literal

import msgspec

from podway.api.columns import AGE, NAME, NAMESPACE, Column
from podway.api.fields import Problem
from podway.api.meta import REDACTED
from podway.api.resource import Names, Resource

SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
"""What the name of a Secret's value must be like."""


class Secret(Resource, frozen=True, kw_only=True):
    """A Kubernetes Secret: `data` is base64 (RFC 4648, section 4), `string_data` is text and comes first."""

    KIND: ClassVar = "Secret"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("secrets")
    COLUMNS: ClassVar = (
        NAMESPACE,
        NAME,
        Column("TYPE", lambda secret, _: secret.type),
        Column("KEYS", lambda secret, _: ",".join(sorted(secret.keys))),
        AGE,
    )
    IN_VIEW: ClassVar = True

    api_version: Literal["v1"] = "v1"
    kind: Literal["Secret"] = "Secret"
    type: str = "Opaque"
    data: dict[str, str] = msgspec.field(default_factory=dict)
    string_data: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        """The names of its values."""
        return frozenset((*self.data, *self.string_data))

    def value(self, key: str) -> str:
        """Return one value as text. Raises KeyError, and ValueError if it is not UTF-8."""
        if key in self.string_data:
            return self.string_data[key]
        return base64.b64decode(self.data[key], validate=True).decode()

    def redacted(self) -> "Secret":
        """Return the Secret without its values: what may be shown and written down."""
        return msgspec.structs.replace(
            self,
            data=dict.fromkeys(self.data, REDACTED),
            string_data=dict.fromkeys(self.string_data, REDACTED),
        )

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the values. None of them is ever part of a message."""
        for field, values in (("data", self.data), ("stringData", self.string_data)):
            for key, value in values.items():
                where = f"{field}[{key}]"
                if not SECRET_KEY.fullmatch(key):
                    yield where, f"{key!r} is not a key", "use at most 253 letters, digits, '-', '_' and '.'"
                elif value == REDACTED:
                    yield where, "is redacted, so it cannot be stored", "write the value itself"
                elif field == "data" and not _is_base64(value):
                    hint = "encode the value (base64 -w0), or write it as it is to stringData"
                    yield where, "is not base64", hint


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
