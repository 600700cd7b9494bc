"""On what the results were measured."""

import os
import platform
import shutil
import subprocess
from datetime import date
from pathlib import Path

import podway

PACKAGES = ("bird2", "containernetworking-plugins", "sockperf", "iperf3", "libnftables1")


def facts() -> list[str]:
    """Return the circumstances of a run, a line each. To be asked before the run, for the load is among them."""
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {_package_version(name)}" for name in PACKAGES)
    return [
        f"{date.today():%Y-%m-%d}, Podway {podway.__version__}, Python {platform.python_version()}",
        f"{_processor()}, {os.cpu_count()} cores, {_memory_gib()} GiB; load before the run {load:.1f}",
        f"Linux {platform.release()}, {_distribution()}; {versions}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _distribution() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown distribution")


def _package_version(name: str) -> str:
    if not shutil.which("dpkg-query"):
        return "?"
    command = ["dpkg-query", "-W", "-f", "${Version}", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout or "not a package"
