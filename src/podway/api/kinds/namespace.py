"""Namespace: what parts the pods of a cluster; Podway reads its labels."""

from typing import ClassVar, Literal

from podway.api.columns import AGE, LABELS, NAME
from podway.api.fields import LABEL
from podway.api.resource import Names, Resource


class Namespace(Resource, frozen=True, kw_only=True):
    """A Kubernetes namespace; Podway reads its labels."""

    KIND: ClassVar = "Namespace"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("namespaces", short=("ns",))
    COLUMNS: ClassVar = (NAME, AGE, LABELS)
    NAME_FORM: ClassVar = LABEL
    IN_VIEW: ClassVar = True

    api_version: Literal["v1"] = "v1"
    kind: Literal["Namespace"] = "Namespace"
