"""Generated configurations, word for word. After a wanted change: PODWAY_UPDATE_GOLDEN=1 pytest, and a diff."""

import os
import subprocess
from pathlib import Path

import pytest
from test_bgp_plan import V4, V6, node, pool

from podway.api.addresses import Family
from podway.api.resources import BgpSettings
from podway.bgp.render import render
from podway.plan.bgp import BgpPlan, plan_bgp

GOLDEN = Path(__file__).parent / "golden"


THREE = [node(number) for number in (1, 2, 3)]
LONG_NAME = node(2, name="rack-7." + "a" * 60 + ".example.org")

PLANS = {
    "ipv4": plan_bgp("node-1", THREE, [V4], BgpSettings()),
    "dual-stack": plan_bgp("node-1", THREE, [V6, V4, pool("10.9.0.0/20", 26)], BgpSettings()),
    "ipv6-no-bfd": plan_bgp(
        "node-1",
        [node(1, (Family.IPV6,)), LONG_NAME],
        [V6],
        BgpSettings(asn=4200000000, port=1790, bfd=False),
    ),
    "alone": plan_bgp("node-1", [node(1)], [V4], BgpSettings()),
    "no-pool": plan_bgp("node-1", THREE, [], BgpSettings()),
}


@pytest.mark.parametrize("name", PLANS)
def test_golden(name: str, tmp_path: Path) -> None:
    text = render(PLANS[name], Path("/run/podway/bird/bird.log"))
    golden = GOLDEN / f"{name}.conf"
    if os.environ.get("PODWAY_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_bird_accepts_it(plan: BgpPlan, tmp_path: Path) -> None:
    file = tmp_path / "bird.conf"
    file.write_text(render(plan, tmp_path / "bird.log"))
    done = subprocess.run(["/usr/sbin/bird", "-p", "-c", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
