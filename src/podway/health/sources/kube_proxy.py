"""Whether kube-proxy serves in a node's network namespace: what errands ask while it comes or goes.

    python3 -m podway.health.sources.kube_proxy serves|stopped|gone SECONDS

Exit status 0 as soon as it is so: its rules for Services are there, it does not run, or neither it nor its rules
are there; else 1 after so many seconds, with the reason.
"""

import http.client
import socket
import sys
import time

from podway.errors import PodwayError, explain
from podway.health.checks.kube_proxy import kube_proxy_serves, rules_of_kube_proxy
from podway.health.sources.firewall import list_here

METRICS = ("127.0.0.1", 10249)
"""Where a kube-proxy tells its mode at /proxyMode, unless its configuration has another metricsBindAddress."""
ANSWER_SECONDS = 1.0
LOOK = 0.5


def runs() -> bool:
    """Tell whether a kube-proxy answers here."""
    asked = http.client.HTTPConnection(*METRICS, timeout=ANSWER_SECONDS)
    try:
        asked.request("GET", "/proxyMode")
        return asked.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def missing(wanted: str) -> str:
    """Return what is not as wanted (`serves`, `gone`), in words, empty if all is. Raises KernelError."""
    if wanted != "serves" and runs():
        return f"a kube-proxy runs here: it answers at {METRICS[0]}:{METRICS[1]}"
    if wanted == "stopped":
        return ""
    firewall, devices = list_here(), [name for _, name in socket.if_nameindex()]
    if wanted == "serves":
        # What the program that lists legacy tables is missing for is believed of a kube-proxy that runs.
        serves = kube_proxy_serves(firewall.rules, devices) or (firewall.unread and runs())
        return "" if serves else f"kube-proxy has no rules for Services yet; {firewall.unread}".rstrip("; ")
    return ", ".join(rules_of_kube_proxy(firewall.rules, devices))


def main(wanted: str, seconds: float) -> str:
    """Look until it is as wanted, or for so long; return what is missing then."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            told = missing(wanted)
        except PodwayError as error:
            told = explain(error)
        if not told or time.monotonic() > deadline:
            return told
        time.sleep(LOOK)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])) or 0)
