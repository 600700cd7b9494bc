"""What is assembled in deploy/: whole, of this version, and with no more rights than an agent uses."""

import shutil
from typing import Any

import yaml

from podway.deploy.objects import IMAGE
from tools import manifests
from tools.manifests import DEPLOY, assembled, problems


def documents() -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DEPLOY / "podway.yaml").read_text()) if one]


def test_what_is_applied_is_whole() -> None:
    kinds = [one["kind"] for one in documents()]
    assert kinds.index("Namespace") == 0, "what lies in it comes after it"
    assert {"CustomResourceDefinition", "DaemonSet", "ClusterRole", "ValidatingAdmissionPolicy"} <= set(kinds)
    assert problems((DEPLOY / "podway.yaml").read_text()) == []


def test_doubles_and_images_of_other_versions_are_found() -> None:
    whole = assembled()
    old = whole.replace(f"image: {IMAGE}", "image: podway.io/podway:0.0.1")
    assert len(problems(old)) == 2
    assert all("is not of podway.io/podway" in problem for problem in problems(old))
    assert any("is there twice" in problem for problem in problems(f"{whole}---\n{whole}"))


def test_containers_are_not_privileged() -> None:
    pods = [one["spec"]["template"]["spec"] for one in documents() if one["kind"] in {"DaemonSet", "Deployment"}]
    assert len(pods) == 2
    for pod in pods:
        assert not {"hostPID", "hostIPC"} & pod.keys()
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            context = container["securityContext"]
            assert "privileged" not in context
            assert context["readOnlyRootFilesystem"]
            assert context["capabilities"]["drop"] == ["ALL"]


def test_a_manifest_that_is_not_current_is_told(monkeypatch: Any, tmp_path: Any, capsys: Any) -> None:
    shutil.copytree(DEPLOY, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(manifests, "DEPLOY", tmp_path)
    assert manifests.main("--check") == 0
    agent = tmp_path / "agent.yaml"
    agent.write_text(agent.read_text().replace("10.244.0.0/16", "10.0.0.0/16"))
    assert manifests.main("--check") == 1
    assert "podway.yaml is not what it is made of" in capsys.readouterr().out
    assert manifests.main("--write") == 1
    assert "pools: 10.244.0.0/16' is there 0 times" in capsys.readouterr().out, "the chart would not say it"
    agent.write_text(agent.read_text().replace("10.0.0.0/16", "10.244.0.0/16"))
    assert manifests.main("--write") == 0
    assert manifests.main("--check") == 0
