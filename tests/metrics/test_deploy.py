"""deploy/alerts.yaml and deploy/dashboard.json: every metric and label that they name is one that there is."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from podway.agent.metrics import METRICS as AGENT
from podway.controller.controller import METRICS as CONTROLLER
from podway.metrics.exposition import Metric
from tests.kubernetes import ROOT

ALERTS, DASHBOARD = ROOT / "deploy/alerts.yaml", ROOT / "deploy/dashboard.json"
KNOWN = {metric.name: metric for metric in (*AGENT, *CONTROLLER)}
OF_SCRAPES = {"job", "instance", "le"}
"""Labels that Prometheus gives, or a histogram has."""


def series() -> dict[str, Metric]:
    """Return the names under which there are values."""
    found = {}
    for metric in KNOWN.values():
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        found.update({f"{metric.name}{end}": metric for end in ends})
    return found


def expressions() -> Iterator[tuple[str, str, str]]:
    """Yield where an expression is, the expression, and the text that is shown with it."""
    for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"], rule["annotations"]["summary"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


@pytest.mark.parametrize(("where", "expression", "text"), list(expressions()), ids=lambda value: None)
def test_what_is_named_is_there(where: str, expression: str, text: str) -> None:
    names = re.findall(r"\bpodway_[a-z_]+", expression)
    assert names or expression.startswith("up{"), where
    assert set(names) <= series().keys(), where
    labels = {label for name in names for label in series()[name].labels} | OF_SCRAPES
    asked = {*re.findall(r"([a-z]+)=~?\"", expression), *re.findall(r"\$labels\.([a-z]+)|{{([a-z]+)}}", text)}
    flat = {one for each in asked for one in ([each] if isinstance(each, str) else each) if one}
    grouped = {one.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for one in group.split(",")}
    assert flat | grouped <= labels, where


def test_every_metric_is_described_once_and_named_as_prometheus_asks() -> None:
    assert len(KNOWN) == len(AGENT) + len(CONTROLLER)
    page = (ROOT / "docs/metrics.md").read_text()
    for metric in KNOWN.values():
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert f"`{metric.name}`" in page, f"docs/metrics.md does not describe {metric.name}"
        assert metric.help.endswith(".")


def test_promtool_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there")
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
