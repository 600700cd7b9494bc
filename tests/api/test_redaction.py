"""Secrets do not get into what is given away: those that objects hold, in every form, and what looks like one."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.secret import Secret
from podway.api.meta import REDACTED, Metadata
from podway.api.redaction import Redactor
from tests.identity.authorities import authority, spec


def secret(value: str) -> Secret:
    return Secret(
        metadata=Metadata(name="s", namespace="default"), data={"key": base64.b64encode(value.encode()).decode()}
    )


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=6, max_size=40))
def test_a_secret_of_an_object_is_nowhere_whatever_is_around_it(value: str) -> None:
    encoded = base64.b64encode(value.encode()).decode()
    text = f'x{value}y {encoded} {{"a": {json.dumps(value)}}} {json.dumps(json.dumps(value))}'
    shown = Redactor([secret(value)]).text(text)
    for form in (value, encoded, json.dumps(value)[1:-1]):
        assert form not in shown.replace(REDACTED, "")


def test_short_secrets_are_taken_out_as_words_and_nothing_else_is() -> None:
    shown = Redactor([secret("s3c")]).text('password s3c, "s3c"; s3cond')
    assert shown == f'password {REDACTED}, "{REDACTED}"; s3cond'


def test_keys_of_the_authority_are_taken_out_whole_and_line_by_line() -> None:
    key = (one := authority()).private_key
    obj = ClusterAuthority(metadata=Metadata(name="default"), spec=spec(one))
    line = key.splitlines()[1]
    for text in (key, json.dumps(key), f"tail of a log: {line}", base64.b64encode(key.encode()).decode()):
        shown = Redactor([obj]).text(text)
        assert line not in shown
        assert base64.b64encode(key.encode()).decode() not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"password": "abc", "name": "x"}', f'{{"password": "{REDACTED}", "name": "x"}}'),
        ("bgp password=hunter2, peer 1", f"bgp password={REDACTED}, peer 1"),
        (r'"said \"password=hunter2\", and \"x\""', rf'"said \"password={REDACTED}\", and \"x\""'),
        (r"password \"hunter2222\" is wrong", rf"password \"{REDACTED}\" is wrong"),
        ("the token 'a b' is wrong", f"the token '{REDACTED}' is wrong"),
        (r"cut short \"token\": \"hunter", rf"cut short \"token\": \"{REDACTED}\""),
        (r"""token='a\' in YAML""", f"token='{REDACTED}' in YAML"),
        ("token: 'a b'", f"token: '{REDACTED}'"),
        ('"client-key-data": "LS0t"', f'"client-key-data": "{REDACTED}"'),
        ("Authorization: Bearer abc.def-1", f"Authorization: Bearer {REDACTED}"),
        ("at eyJhbGciOiJSUzI1.eyJzdWIiOiIxIn0x.c2ln end", f"at {REDACTED} end"),
        ("kubernetes:https://me:pass@host:6443/", f"kubernetes:https://{REDACTED}@host:6443/"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nrest", f"{REDACTED}\nrest"),
        ("cut short -----BEGIN PRIVATE KEY-----\nMHcCAQ", f"cut short {REDACTED}"),
        (
            '"passwordSecret": {"name": "bgp", "key": "password"}',
            '"passwordSecret": {"name": "bgp", "key": "password"}',
        ),
        ('"password": ""', '"password": ""'),
        (r'"{\"password\": \"\", \"x\": 1}"', r'"{\"password\": \"\", \"x\": 1}"'),
        ('{"why": "no token ", "by": "n1"}', '{"why": "no token ", "by": "n1"}'),
        ("10.0.0.1:80 -> fd00::1:443", "10.0.0.1:80 -> fd00::1:443"),
        (
            "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
            "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
        ),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_and_what_does_not_stays(text: str, shown: str) -> None:
    assert Redactor().text(text) == shown


@given(st.text(min_size=1), st.text(), st.integers(min_value=1, max_value=4), st.booleans())
def test_json_within_json_lacks_the_secret_and_nothing_else(
    value: str, other: str, depth: int, only_ascii: bool
) -> None:
    text: Any = {"password": value, "name": other}
    for _ in range(depth):
        text = json.dumps(text, ensure_ascii=only_ascii)
    text = Redactor().text(text)
    for _ in range(depth):
        text = json.loads(text)
    assert text == {"password": REDACTED, "name": other}
