"""The Helm chart says what the manifests say: by Helm where it is installed, and by what its few actions mean."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import reduce
from typing import Any

import pytest
import yaml

from podway.deploy.objects import IMAGE, objects, subject, texts
from tools.chart import DriftError, templates
from tools.manifests import DEPLOY

CHART = DEPLOY / "helm/podway"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]


def value(values: dict[str, Any], path: str) -> Any:
    return reduce(lambda found, key: found[key], path.removeprefix(".Values.").split("."), values)


def rendered(values: dict[str, Any]) -> str:
    """Return what Helm makes of the templates: they have four forms of actions, and no other is known here."""

    def action(match: re.Match[str]) -> str:
        words = match[1]
        if found := re.fullmatch(r"(\.Values\.[\w.]+) \| toJson", words):
            return json.dumps(value(values, found[1]))
        if found := re.fullmatch(r'join "," (\.Values\.[\w.]+) \| toJson', words):
            return json.dumps(",".join(value(values, found[1])))
        assert words == (
            'printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | toJson'
        )
        return json.dumps(f"{values['image']['repository']}:{values['image']['tag'] or VERSION}")

    made = []
    for path in sorted((CHART / "templates").glob("*.yaml")):
        text = path.read_text()
        if found := re.fullmatch(r"{{- if (\S+) }}\n(.*){{- end }}\n", text, re.DOTALL):
            text = found[2] if value(values, found[1]) else ""
        made.append(re.sub(r"{{ (.+?) }}", action, text))
    return "\n---\n".join(made)


def helm(tmp_path: Any, values: dict[str, Any]) -> str:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    command = ["helm", "template", "podway", str(CHART), "--namespace", "kube-system", "--kube-version", "1.37.0"]
    done = subprocess.run([*command, "-f", str(tmp_path / "values.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {subject(one): plain(one) for one in yaml.safe_load_all(text) if one}


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without what the chart alone says."""
    document["metadata"].get("annotations", {}).pop("helm.sh/resource-policy", None)
    pod = document.get("spec", {}).get("template", {}).get("spec", {})
    for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
        container.pop("imagePullPolicy", None)
    return document


OURS = {subject(one): one for one in objects()}


def test_it_says_what_the_manifests_say() -> None:
    assert documents(rendered(VALUES)) == OURS


@pytest.mark.skipif(shutil.which("helm") is None, reason="Helm is not installed: its templates are read otherwise")
def test_helm_says_what_the_manifests_say(tmp_path: Any) -> None:
    assert documents(helm(tmp_path, VALUES)) == OURS


def test_values_take_effect() -> None:
    chosen = {
        **VALUES,
        "image": {"repository": "r.example.com/p", "tag": "7", "pullPolicy": "Always"},
        "pools": ["10.1.0.0/16", "fd00:1::/48"],
        "cni": {"binDir": "/b", "confDir": "/c"},
        "controller": {"replicas": 3, "resources": {}},
        "definitions": {"install": False},
    }
    text = rendered(chosen)
    assert IMAGE not in text
    assert text.count('"r.example.com/p:7"') == 2
    found = documents(text)
    assert not [name for name in found if name.startswith("CustomResourceDefinition")]
    assert found["ConfigMap/podway/podway"]["data"]["pools"] == "10.1.0.0/16,fd00:1::/48"
    assert found["Deployment/podway/podway-controller"]["spec"]["replicas"] == 3
    volumes = found["DaemonSet/podway/podway-agent"]["spec"]["template"]["spec"]["volumes"]
    assert {one["name"]: one.get("hostPath", {}).get("path") for one in volumes}["plugins"] == "/b"


def test_definitions_stay_when_a_release_goes() -> None:
    definitions = [
        one for one in yaml.safe_load_all(rendered(VALUES)) if one and one["kind"] == "CustomResourceDefinition"
    ]
    assert len(definitions) == 6
    for one in definitions:
        assert one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in values.items():
        if isinstance(inner, dict) and name != "resources":
            yield from leaves(inner, f"{path}.{name}")
        else:
            yield f"{path}.{name}", inner


KINDS = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def stated(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        assert path == "" or "properties" not in part or part["additionalProperties"] is False
        for name, inner in part.get("properties", {}).items():
            if name != "global":  # Helm's own
                yield from (
                    stated(inner, f"{path}.{name}") if "properties" in inner else [(f"{path}.{name}", inner)]
                )

    known, given = dict(stated(schema)), dict(leaves(VALUES))
    assert known.keys() == given.keys()
    for path, one in given.items():
        rule = known[path]
        assert one in rule["enum"] if "enum" in rule else isinstance(one, KINDS[rule["type"]]), path
        if "pattern" in rule:
            assert re.search(rule["pattern"], one)


def test_a_manifest_that_says_something_else_is_told() -> None:
    manifests = texts()
    with pytest.raises(DriftError, match=r"agent\.yaml: 'path: /opt/cni/bin' is there 0 times, not 1"):
        templates({**manifests, "agent.yaml": manifests["agent.yaml"].replace("path: /opt/cni/bin", "path: /x")})
    with pytest.raises(DriftError, match="would take what it says for an action"):
        templates({"rbac.yaml": "a: '{{ b }}'"})
