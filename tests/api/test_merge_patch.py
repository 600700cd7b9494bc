"""JSON merge patches, by the examples of RFC 7396 and by what they are for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.merge_patch import apply, between


@pytest.mark.parametrize(
    ("document", "patch", "after"),
    [
        # RFC 7396, appendix A: those that are about objects.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_the_rfc(document: Any, patch: Any, after: Any) -> None:
    before = repr(document)
    assert apply(document, patch) == after
    assert repr(document) == before


NAMES = st.sampled_from("abc")
DOCUMENTS = st.dictionaries(
    NAMES,
    st.recursive(
        st.booleans() | st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2),
        lambda inner: st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@given(DOCUMENTS, DOCUMENTS)
def test_what_is_between_two_documents_leads_from_one_to_the_other(before: Any, after: Any) -> None:
    patch = between(before, after)
    assert apply(before, patch) == after
    assert between(after, after) == {}
    assert between(apply(before, patch), after) == {}


@given(DOCUMENTS, DOCUMENTS, st.integers())
def test_a_patch_leaves_alone_what_it_does_not_name(before: Any, after: Any, other: int) -> None:
    assert apply({**before, "z": other}, between(before, after)) == {**after, "z": other}
