"""A kind of resource is one module: what each says of itself, and that one module more makes a new kind.

The package is copied (by links) with one module more in podway.api.kinds and one in podway.api.rules; what is
there is then run as it is. The store is a file, so nobody needs root.
"""

import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import podway
from podway.api.fields import LABEL
from podway.api.kinds import KINDS
from podway.api.meta import Record
from podway.api.resource import GROUP, Resource, api_version
from tests.patience import PATIENCE

GADGET = '''
"""Gadget: what the test adds."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from podway.api.columns import AGE, NAME, NAMESPACE, Column
from podway.api.fields import Problem
from podway.api.meta import StrictRecord
from podway.api.resource import Names, Resource


class GadgetSpec(StrictRecord, frozen=True, kw_only=True):
    """What a gadget is like; `size` is in bytes."""

    size: int
    colour: Literal["red", "green"] = "red"
    node: str = ""


class GadgetStatus(StrictRecord, frozen=True, kw_only=True):
    """What is seen of it."""

    seen: bool = False


class Gadget(Resource, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gadget."""

    KIND: ClassVar = "Gadget"
    NAMESPACED: ClassVar = True
    NAMES: ClassVar = Names("gadgets", short=("gad",))
    COLUMNS: ClassVar = (NAMESPACE, NAME, Column("SIZE", lambda gadget, _: str(gadget.spec.size)), AGE)
    IN_VIEW: ClassVar = True
    INDICES: ClassVar = {"colour": lambda gadget: (gadget.spec.colour,)}
    SETTABLE: ClassVar = {"owner": ("labels", "owner")}

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["Gadget"] = "Gadget"
    spec: GadgetSpec
    status: GadgetStatus = GadgetStatus()

    def problems(self) -> Iterator[Problem]:
        if self.spec.size < 1:
            yield "spec.size", f"{self.spec.size} is too small", "write 1 or more"
'''

RULE = """
from podway.api.kinds.gadget import Gadget
from podway.api.kinds.node import Node
from podway.api.resource import invalid, of_kind


def check_change(new, others, old):
    if isinstance(new, Gadget) and new.spec.node not in ("", *(n.metadata.name for n in of_kind(Node, others))):
        raise invalid(new, "spec.node", f"Node/{new.spec.node} does not exist", "name a node")


def check_deletion(obj, others):
    if isinstance(obj, Node) and any(one.spec.node == obj.metadata.name for one in of_kind(Gadget, others)):
        raise invalid(obj, "", "a gadget is on it", "delete the gadget first")
"""

IN_THE_AGENTS_VIEW = """
from podway.api.kinds.gadget import Gadget, GadgetSpec
from podway.api.meta import Metadata
from podway.cluster.relevance import alters_plans
from podway.cluster.view import ClusterView
gadget = Gadget(metadata=Metadata(name="a", namespace="shop"), spec=GadgetSpec(size=3))
empty = ClusterView.of(())
change = empty.change(gadget)
view = empty.after(change)
assert view.namespaced_table(Gadget).select("colour", "red") == (gadget,)
assert view.find(("Gadget", "shop", "a")) == gadget
assert alters_plans(change)
assert [one.new for one in empty.changes_to(view)] == [gadget]
assert not view.after(view.change(gadget, deleted=True)).namespaced_table(Gadget)
"""

Run = Callable[..., str]


def manifest(name: str = "a", **spec: object) -> str:
    return json.dumps(
        {
            "apiVersion": "podway.io/v1",
            "kind": "Gadget",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"size": 3, **spec},
        }
    )


def linked(source: Path, target: Path) -> None:
    """Make a copy of a package whose files are links."""
    target.mkdir()
    for one in source.iterdir():
        if one.name == "__pycache__":
            continue
        if one.is_dir():
            linked(one, target / one.name)
        else:
            (target / one.name).symlink_to(one)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a Podway that has the kind Gadget."""
    where = tmp_path_factory.mktemp("package")
    linked(Path(podway.__file__).parent, where / "podway")
    (where / "podway/api/kinds/gadget.py").write_text(GADGET)
    (where / "podway/api/rules/gadgets.py").write_text(RULE)
    return where


def environment(package: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PODWAY_")}
    return {**kept, "PYTHONPATH": str(package)}


@pytest.fixture
def run(package: Path, tmp_path: Path) -> Run:
    """Run the command line of that Podway on a store; return what it prints, on standard error if it fails."""

    def podway(*words: str, stdin: str = "", status: int = 0, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "podway", *words],
            input=stdin,
            capture_output=True,
            text=True,
            env={**environment(package), "PODWAY_STORE": f"sqlite://{tmp_path}/store.db", **more},
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    return podway


def test_objects_of_a_new_kind_are_made_shown_changed_and_deleted(run: Run) -> None:
    assert run("apply", "-f", "-", stdin=manifest()) == "Gadget/shop/a created\n"
    assert run("apply", "-f", "-", stdin=manifest(size=4)) == "Gadget/shop/a configured\n"
    assert run("apply", "-f", "-", stdin=manifest(size=4)) == "Gadget/shop/a unchanged\n"
    for called in ("gadgets", "gadget", "gad", "Gadget", "gadgets.podway.io"):
        header, row = run("get", called, "-n", "shop").splitlines()
        assert header.split() == ["NAMESPACE", "NAME", "SIZE", "AGE"]
        assert row.split()[:3] == ["shop", "a", "4"]
    assert run("get", "gadgets", "-A", "-o", "name") == "gadget/shop/a\n"
    shown = json.loads(run("get", "gadget/shop/a", "-o", "json"))
    assert (shown["apiVersion"], shown["kind"], shown["spec"]) == ("podway.io/v1", "Gadget", {"size": 4})
    assert "Gadget/shop/a configured" in run("apply", "-f", "-", stdin=json.dumps({**shown, "spec": {"size": 5}}))
    page = run("describe", "gadget", "shop/a")
    assert "Gadget/shop/a" in page
    assert "colour: red" in page
    assert "podway get gadgets shop/a -o yaml" in page
    assert run("set", "gadget/shop/a", "colour=green", "owner=me") == (
        "Gadget/shop/a: owner nothing → me, colour red → green\n"
    )
    assert run("get", "gadgets", "-n", "shop", "-l", "owner=me", "-o", "name") == "gadget/a\n"
    assert run("delete", "gadget/shop/a") == "Gadget/shop/a deleted\n"
    assert run("get", "gadgets", "-A") == ""


def test_mistakes_in_a_new_kind_are_told_by_file_object_and_field(run: Run) -> None:
    told = run("apply", "-f", "-", stdin=manifest(sise=1), status=1)
    assert "standard input, document 1, line 1: Gadget/shop/a: spec.sise: is not a field here" in told
    assert "did you mean `size`?" in told
    assert "spec.size: must be a whole number, not a string" in run(
        "apply", "-f", "-", stdin=manifest(size="x"), status=1
    )
    assert "spec.colour: 'blue' is not possible" in run(
        "apply", "-f", "-", stdin=manifest(colour="blue"), status=1
    )
    assert "spec.size: 0 is too small" in run("apply", "-f", "-", stdin=manifest(size=0), status=1)
    assert "metadata.name: 'A' is not an RFC 1123" in run("apply", "-f", "-", stdin=manifest("A"), status=1)
    assert "write `apiVersion: podway.io/v1`" in run(
        "apply", "-f", "-", stdin=manifest().replace("podway.io/v1", "v1"), status=1
    )
    assert "did you mean `Gadget`?" in run(
        "apply", "-f", "-", stdin=manifest().replace('"Gadget"', '"Gadgte"'), status=1
    )
    assert "did you mean gadget" in run("get", "gadgetz", status=2)
    run("apply", "-f", "-", stdin=manifest())
    assert "there is Gadget/shop/a: say -n shop" in run("describe", "gadget/a", status=1)


def test_a_rule_between_objects_of_a_new_kind_and_others_is_kept(run: Run) -> None:
    node = '{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}'
    assert "spec.node: Node/n1 does not exist" in run("apply", "-f", "-", stdin=manifest(node="n1"), status=1)
    run("apply", "-f", "-", stdin=f"{node}\n---\n{manifest(node='n1')}")
    assert "a gadget is on it" in run("delete", "node", "n1", status=1)


def test_words_of_a_new_kind_are_completed(run: Run) -> None:
    run("apply", "-f", "-", stdin=manifest())

    def completed(words: str) -> list[str]:
        told = run(
            status=0,
            _PODWAY_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split(" ")) - 1),
        )
        return [line.partition(",")[2] for line in told.splitlines()]

    assert completed("podway get gad") == ["gadgets"]
    assert completed("podway delete gadget shop/") == ["shop/a"]
    assert completed("podway set gadget/shop/a colour=") == ["colour=red", "colour=green"]
    assert completed("podway set gadget/shop/a o") == ["owner="]


def test_a_new_kind_is_watched(run: Run, package: Path, tmp_path: Path) -> None:
    run("apply", "-f", "-", stdin=manifest())
    with subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-u", "-m", "podway", "get", "gadgets", "-A", "-w"],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(package), "PODWAY_STORE": f"sqlite://{tmp_path}/store.db"},
    ) as watching:
        try:
            assert watching.stdout is not None
            lines = iter(watching.stdout.readline, "")
            assert next(lines).split() == ["NAMESPACE", "NAME", "SIZE", "AGE"]
            assert next(lines).split()[:3] == ["shop", "a", "3"]
            run("apply", "-f", "-", stdin=manifest(size=7))
            assert next(lines).split()[:3] == ["shop", "a", "7"]
            run("delete", "gadget/shop/a")
            assert next(lines).split()[-1] == "(gone)"
        finally:
            watching.terminate()


def test_agents_keep_a_table_of_a_new_kind_that_plans_depend_on(package: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", IN_THE_AGENTS_VIEW], env=environment(package), timeout=PATIENCE, check=True
    )


def structs_of(kind: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
    """Return a Struct and all that its fields are made of."""
    found = {kind}
    for field in msgspec.structs.fields(kind):
        parts = [field.type]
        while parts:
            part = parts.pop()
            parts += typing.get_args(part)
            if isinstance(part, type) and issubclass(part, Record):
                found |= structs_of(part)
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_says_of_itself_what_a_custom_resource_definition_needs(kind: type[Resource]) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    assert typing.get_args(fields["kind"].type) == (kind.KIND,) == (fields["kind"].default,)
    assert api_version(kind) in typing.get_args(fields["api_version"].type)
    assert re.fullmatch(rf"(({re.escape(GROUP)}|[a-z.]+\.k8s\.io)/)?v1(beta1)?", api_version(kind))
    for name in (kind.NAMES.plural, *kind.NAMES.short):
        assert LABEL.fullmatch(name)
    assert kind.NAMES.plural != kind.KIND.lower()
    for struct in structs_of(kind):
        assert (struct.__doc__ or "").strip(), struct
        if api_version(kind).startswith(GROUP) and struct.__module__ == kind.__module__:
            assert struct.__struct_config__.forbid_unknown_fields, struct
    assert msgspec.json.schema(kind)["$defs"][kind.__name__]["description"]


def test_no_two_kinds_are_called_alike() -> None:
    words = [
        word
        for kind in KINDS.values()
        for word in {kind.KIND.lower(), kind.NAMES.plural, *kind.NAMES.short, *kind.NAMES.usual}
    ]
    assert len(words) == len(set(words))
