"""Takes secrets out of text before anybody else sees it. Pure.

Twice: what the cluster's objects are known to hold as secrets is taken out wherever it stands, and so is whatever
looks like one, since logs and answers may quote what no object has any more.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator

from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.secret import Secret
from podway.api.meta import REDACTED
from podway.api.resource import Resource

SHORT = 6
"""Secrets of fewer letters are taken out only where one is a whole word: they might be a part of anything."""

_KEY_LINE = 24
"""Lines of a key that are at least so long are secrets by themselves."""

_LOOKS_SECRET = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # a JSON Web Token (RFC 7519)
    re.compile(r"(?<=bearer )[\w.~+/-]+=*", re.IGNORECASE),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # user and password in a URL
)
_NAMED = re.compile(
    r"""
    (?P<name>
        (?:passw(?:or)?d|passphrase|token|private_?-?key|client-key-data|api_?-?key)\\*["']?
        (?:\s*[:=]\s*|\s+(?=\\*["'][^\s,:)}\]]))
    )
    (?=(?P<opening>(?:\\*["'])?))
    (?P<value>
        # JSON quoted in JSON doubles each backslash, and adds one before each quote. So where a string opens
        # behind n backslashes, n + 1 stand for one of its own, and an odd number of those keeps a quote from
        # closing it.
        (?P<n>\\*)(?P<quote>["'])
        (?:
            (?!(?P=quote))[^\\]
            | \\+(?!\\|(?P=quote))
            | (?:(?P=n)\\(?P=n)\\)*(?P=n)\\(?P=n)(?P=quote)
        )*
        (?:(?P=n)\\(?P=n)\\)*(?P=n)(?P=quote)
        | '[^']*'
        | \\+["'][^"'\n]*  # cut short
        | (?:[^\s,;{}\[\]"'\\]|\\+(?!["'\\]))+
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NOTHING = {"null", "true", "false", "None"}


class Redactor:
    """Knows a cluster's secrets."""

    def __init__(self, objects: Iterable[Resource] = ()) -> None:
        """Take the objects as they are stored, not as they are shown."""
        known = {secret for obj in objects for secret in _secrets_of(obj) if secret.strip()}
        self._long = sorted((one for one in known if len(one) >= SHORT), key=len, reverse=True)
        short = sorted((one for one in known if len(one) < SHORT), key=len, reverse=True)
        self._short = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, short))})(?!\w)") if short else None

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        for secret in self._long:
            text = text.replace(secret, REDACTED)
        if self._short is not None:
            text = self._short.sub(REDACTED, text)
        for pattern in _LOOKS_SECRET:
            text = pattern.sub(REDACTED, text)
        return _NAMED.sub(_without_value, text)


def _without_value(match: re.Match[str]) -> str:
    name, value, quote = match["name"], match["value"], match["opening"]
    if value in _NOTHING or value.removeprefix(quote).removesuffix(quote) in ("", REDACTED):
        return match[0]
    return f"{name}{quote}{REDACTED}{quote}"


def _secrets_of(obj: Resource) -> Iterator[str]:
    """Yield what is secret in an object, in each form in which it may be quoted."""
    if isinstance(obj, Secret):
        for value in obj.string_data.values():
            yield from _forms(value)
        for encoded in obj.data.values():
            yield encoded
            try:
                yield from _forms(base64.b64decode(encoded, validate=True).decode())
            except (binascii.Error, UnicodeDecodeError):
                continue  # it is quoted as it is stored, or not at all
    elif isinstance(obj, ClusterAuthority):
        for one in obj.spec.authorities:
            yield from _forms(one.private_key)


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield secret.strip()
    yield json.dumps(secret)[1:-1]
    yield base64.b64encode(secret.encode()).decode()
    if "\n" in secret:
        yield from (
            line for line in secret.splitlines() if len(line) >= _KEY_LINE and not line.startswith("-----")
        )
