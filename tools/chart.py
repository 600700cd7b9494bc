"""The templates of the Helm chart, made of the manifests: their text, with values in place of what may be chosen.

A value is put in as JSON, which is YAML as well, so a template is a manifest with other scalars and no logic.
"""

from collections.abc import Mapping
from typing import NamedTuple

from podway.deploy.objects import CRDS, IMAGE

IMAGE_VALUE = (
    '{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | toJson }}'
)


class Choice(NamedTuple):
    """A text of a manifest, there once, that a value takes the place of."""

    text: str
    template: str


def _path(path: str, value: str) -> Choice:
    return Choice(f"          path: {path}\n", f"          path: {{{{ .Values.cni.{value} | toJson }}}}\n")


def _resources(cpu: str, memory: str, of: str) -> Choice:
    text = f"resources:\n          requests:\n            cpu: {cpu}\n            memory: {memory}\n"
    return Choice(text, f"resources: {{{{ .Values.{of}.resources | toJson }}}}\n")


IMAGES = Choice(
    f"image: {IMAGE}",
    f"image: {IMAGE_VALUE}\n        imagePullPolicy: {{{{ .Values.image.pullPolicy | toJson }}}}",
)

CHOICES: Mapping[str, tuple[Choice, ...]] = {
    "agent.yaml": (
        IMAGES,
        Choice("  pools: 10.244.0.0/16\n", '  pools: {{ join "," .Values.pools | toJson }}\n'),
        _path("/opt/cni/bin", "binDir"),
        _path("/etc/cni/net.d", "confDir"),
        _resources("100m", "128Mi", "agent"),
    ),
    "controller.yaml": (
        IMAGES,
        Choice("  replicas: 2\n", "  replicas: {{ .Values.controller.replicas | toJson }}\n"),
        _resources("10m", "64Mi", "controller"),
    ),
}
"""What may be chosen, by manifest."""

KEEP = "  annotations:\n    helm.sh/resource-policy: keep\n"
IF_DEFINITIONS, END = "{{- if .Values.definitions.install }}\n", "{{- end }}\n"


class DriftError(Exception):
    """A manifest does not say what a value is to take the place of."""


def templates(manifests: Mapping[str, str]) -> dict[str, str]:
    """Return the chart's templates by name, of the manifests by name. Raises DriftError."""
    made = {}
    for name, text in manifests.items():
        if "{{" in text:
            raise DriftError(f"deploy/{name}: a template would take what it says for an action: {{{{")
        if name == CRDS:
            kept = text.replace("  annotations:\n", KEEP)
            if kept.count(KEEP) != text.count("\nkind: CustomResourceDefinition\n"):
                raise DriftError(f"deploy/{name}: not every definition would be kept")
            made[name] = IF_DEFINITIONS + kept + END
        else:
            made[name] = _chosen(name, text)
    return made


def _chosen(name: str, text: str) -> str:
    for choice in CHOICES.get(name, ()):
        if (found := text.count(choice.text)) != 1:
            raise DriftError(f"deploy/{name}: {choice.text.strip()!r} is there {found} times, not 1")
        text = text.replace(choice.text, choice.template)
    return text
