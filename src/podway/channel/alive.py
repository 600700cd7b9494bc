"""Whether the agent of this machine works: what a kubelet asks every few seconds, so nothing large is imported.

    python3 -m podway.channel.alive SOCKET [--ready | --serves SECONDS]

Exit status 0 if the agent answers and, with --ready, if pods can be attached; with --serves as soon as Services
are served to all who ask the node, within so many seconds. Else 1, with the reason.
"""

import json
import socket
import sys
import time

SECONDS = 5.0
LOOK = 0.5


def main(path: str, *, ready: bool = False, serves: bool = False) -> str:
    """Ask the agent at a socket; return what is wrong, in words, empty if nothing is."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.settimeout(SECONDS)
            agent.connect(path)
            agent.sendall(b'{"method":"alive"}\n')
            with agent.makefile("rb") as answers:
                answer = json.loads(answers.readline())["result"]
    except (OSError, ValueError, KeyError) as error:
        return f"the agent at {path} does not answer: {error}"
    if serves and not answer["serves"]:
        return str(answer["problem"] or "Services are not served to all yet: see `podway status` there")
    return str(answer["problem"]) if ready else ""


def until_served(path: str, seconds: float) -> str:
    """Ask the agent at a socket until it serves Services, or for so long; return what is wrong then."""
    deadline = time.monotonic() + seconds
    while (told := main(path, serves=True)) and time.monotonic() < deadline:
        time.sleep(LOOK)
    return told


if __name__ == "__main__":
    if "--serves" in sys.argv[2:]:
        sys.exit(until_served(sys.argv[1], float(sys.argv[3])) or 0)
    sys.exit(main(sys.argv[1], ready="--ready" in sys.argv[2:]) or 0)
