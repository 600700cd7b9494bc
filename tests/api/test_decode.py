import contextlib
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.decode import decode
from podway.api.encode import to_builtins, to_json, to_list, to_yaml
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Container, Pod, PodSpec
from podway.api.meta import LabelSelector, Metadata, SelectorRequirement
from podway.api.resource import Resource
from podway.errors import InvalidInput, InvalidObject

POOL = """\
apiVersion: podway.io/v1
kind: IPPool
metadata:
  name: default
  labels: {team: a}
spec:
  cidr: 10.244.0.0/16
"""


def read(text: str) -> list[Resource]:
    return [manifest.resource for manifest in decode(text, source="m.yaml")]


E = TypeVar("E", bound=InvalidInput)


def refused(text: str, kind: type[E]) -> E:
    with pytest.raises(kind) as caught:
        decode(text, source="m.yaml")
    return caught.value


def test_documents_lists_and_json() -> None:
    json_pod = '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}'
    listed = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b}}
"""
    typed = "apiVersion: v1\nkind: NodeList\nitems: [{metadata: {name: n1}}]"
    found = read("\n---\n".join(["# nothing here", POOL, json_pod, listed, typed, ""]))
    assert [(type(obj), obj.metadata.name) for obj in found] == [
        (IPPool, "default"),
        (Pod, "web"),
        (Namespace, "a"),
        (Namespace, "b"),
        (Node, "n1"),
    ]


def test_null_is_as_if_not_written_and_kubernetes_other_fields_are_passed_over() -> None:
    (pod,) = read(
        """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: null, creationTimestamp: null, managedFields: [{manager: x}]}
spec: {containers: [{name: c, image: nginx, env: null}], nodeName: n1}
status: null
"""
    )
    assert pod == Pod(
        metadata=Metadata(name="web"), spec=PodSpec(node_name="n1", containers=(Container(name="c"),))
    )


def test_yaml_1_2_scalars() -> None:
    (pool,) = read(POOL.replace("{team: a}", "{a: no, b: on, c: 010, d: 12:30:45, e: 2026-11-23, f: =}"))
    assert pool.metadata.labels == {
        "a": "no",
        "b": "on",
        "c": "010",
        "d": "12:30:45",
        "e": "2026-11-23",
        "f": "=",
    }


def test_where_a_field_stands() -> None:
    listed = "kind: List\napiVersion: v1\nitems:\n- kind: Namespace\n  apiVersion: v1\n  metadata: {name: a}\n"
    pool, namespace = decode(f"{POOL}---\n{listed}", source="m.yaml")
    assert pool.where() == "m.yaml, document 1, line 1"
    assert pool.where("spec.cidr") == "m.yaml, document 1, line 7"
    assert pool.where("spec.blockSize") == "m.yaml, document 1, line 6"
    assert namespace.where("metadata.name") == "m.yaml, document 2, line 14"


@pytest.mark.parametrize(
    ("text", "line", "subject", "field", "words"),
    [
        (POOL + "  blocksize: 26\n", 8, "IPPool/default", "spec.blocksize", ["blockSize"]),
        (POOL + "  wibble: 26\n", 8, "IPPool/default", "spec.wibble", ["cidr", "cooldownSeconds"]),
        (POOL + "  blockSize: big\n", 8, "IPPool/default", "spec.blockSize", ["whole number", "string"]),
        (POOL + "  excluded:\n  - 10.244.0.1\n  - 7\n", 10, "IPPool/default", "spec.excluded[1]", ["quotes"]),
        (POOL.replace("team: a", "a: b, c: 1"), 5, "IPPool/default", "metadata.labels[c]", ["quotes"]),
        (POOL.replace("  cidr: 10.244.0.0/16\n", "  disabled: true\n"), 6, "IPPool/default", "spec.cidr", ["add"]),
        (POOL.replace("IPPool", "ippool"), 2, "object default", "kind", ["'ippool'", "`IPPool`"]),
        (POOL.replace("kind: IPPool\n", ""), 1, "object default", "kind", ["missing", "NetworkConfig"]),
        (POOL.replace("podway.io/v1", "v1"), 1, "IPPool/default", "apiVersion", ["podway.io/v1"]),
        (POOL.replace("apiVersion: podway.io/v1\n", ""), 1, "IPPool/default", "apiVersion", ["missing"]),
        (
            POOL + "  nodeSelector:\n    matchExpressions: [{key: a, operator: in}]\n",
            9,
            "IPPool/default",
            "spec.nodeSelector.matchExpressions[0].operator",
            ["'in'", "`In`"],
        ),
        (
            POOL + "  nodeSelector:\n    matchExpression: []\n",
            9,
            "IPPool/default",
            "spec.nodeSelector.matchExpression",
            ["`matchExpressions`"],
        ),
        ("- a\n- b\n", 1, "document", "", ["not an object"]),
        ("kind: List\nitems: {a: b}\n", 2, "List", "items", ["not a list"]),
    ],
)
def test_mistakes_name_line_object_field_and_cure(
    text: str, line: int, subject: str, field: str, words: list[str]
) -> None:
    error = refused(f"\n---\n{text}", InvalidObject)
    assert error.origin == f"m.yaml, document 1, line {line + 2}"
    assert (error.subject, error.field) == (subject, field)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1,", ["line 2", "not YAML or JSON"]),
        ("a: 1\n  b: 2\n", ["line 2"]),
        ("\ta: 1", ["line 1", "token"]),
        ("a: \0", ["m.yaml", "control characters"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a' stands twice"]),
        ("a: !!binary x", ["line 1", "'binary'"]),
        ("<<: {a: 1}", ["line 1", "each field"]),
        ("? [a]\n: b", ["line 1", "each field"]),
        ("[" * 200_000, ["nested"]),
        ("a: &a [*a]", ["nested"]),
        (
            "a: &a [x]\n" + "".join(f"b{n}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 9}]\n" for n in range(9)),
            ["unfolds"],
        ),
        ("a: *nowhere", ["line 1", "alias"]),
    ],
)
def test_text_that_is_no_manifest(text: str, words: list[str]) -> None:
    message = str(refused(text, InvalidInput))
    for word in ["m.yaml", *words]:
        assert word in message


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        decode(text, source="m.yaml")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
SCALAR_LIKE = st.sampled_from(
    ["1e3", "no", "010", "null", "~", "0x1f", "1_000", "=", "<<", "1:30", ".inf", "-", ""]
)
RESOURCES = st.one_of(
    st.builds(
        lambda name, notes, excluded, size: IPPool(
            metadata=Metadata(name=name, annotations=notes),
            spec=IPPoolSpec(
                cidr="10.0.0.0/8",
                block_size=size,
                excluded=tuple(excluded),
                node_selector=LabelSelector(
                    match_expressions=(SelectorRequirement(key="a", operator="In", values=tuple(excluded)),)
                ),
            ),
        ),
        TEXT,
        st.dictionaries(TEXT, TEXT | SCALAR_LIKE),
        st.lists(TEXT | SCALAR_LIKE),
        st.none() | st.integers(0, 128),
    ),
    st.builds(lambda name: NetworkConfig(metadata=Metadata(name=name)), TEXT | SCALAR_LIKE),
)


@given(st.lists(RESOURCES))
def test_what_is_written_is_read_back(resources: list[Resource]) -> None:
    shape = to_list([to_builtins(resource) for resource in resources])
    assert read(to_yaml(shape)) == resources
    assert read(to_json(shape)) == resources


def test_written_form_leaves_out_what_is_empty() -> None:
    pool = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/8"))
    assert to_yaml(to_builtins(pool)) == (
        "apiVersion: podway.io/v1\nkind: IPPool\nmetadata:\n  name: p\nspec:\n  cidr: 10.0.0.0/8\n"
    )
