"""Whether the agent of this machine works: what a kubelet asks every few seconds, so nothing large is imported.

    python3 -m podway.channel.alive SOCKET [--ready]

Exit status 0 if the agent answers and, with --ready, if pods can be attached; else 1, with the reason.
"""

import json
import socket
import sys

SECONDS = 5.0


def main(path: str, *, ready: bool) -> str:
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
    return str(answer["problem"]) if ready else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], ready="--ready" in sys.argv[2:]) or 0)
