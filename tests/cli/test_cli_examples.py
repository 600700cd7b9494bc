"""What --help says is true: every example is a command line that Podway takes, by its own command."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from podway.cli import lab
from podway.cli import main as root
from podway.errors import LabError
from podway.lab import cluster


def commands(
    command: click.Command = root.main, words: tuple[str, ...] = ("podway",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that can be run, with the words that name it."""
    if isinstance(command, click.Group):
        context = command.make_context(words[-1], [], resilient_parsing=True)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*words, name))
    yield words, command


COMMANDS = dict(commands())


def examples(command: click.Command) -> list[str]:
    _, found, text = (command.epilog or "").partition("Examples:")
    return [line.strip() for line in text.splitlines() if line.strip()] if found else []


EXAMPLES = [(words, line) for words, command in COMMANDS.items() for line in examples(command)]


def lines_of(example: str) -> list[str]:
    """Return the command lines of Podway's in an example: without its comment, redirection and other programs."""
    line = bare(example)
    inner = re.findall(r"\$\((podway [^)]*)\)|<\((podway [^)]*)\)", line)
    outer = re.sub(r"[$<]\(podway [^)]*\)", "pod/web", line)
    found = [line for pair in inner for line in pair if line]
    return [*found, *([re.sub(r"\s*[>|]\s.*$", "", outer)] if outer.startswith("podway ") else [])]


HOST = "changes the machine itself; tests/host and tests/system do the same in namespaces and other directories"
OWN_DIRECTORIES = "writes into the machine's own directories; tests/preview/test_completion.py runs every shell's"
WHOLE = "takes programs that are built for minutes; tests/whole does it"
ETCD = "takes etcd; tests/lab/test_lab_etcd.py does it"
CONTROLLER = "runs until it is ended; tests/controller does it"
CLUSTER = "takes a cluster in Kubernetes; tests/deploy does it"
NOT_RUN = {
    "podway simulate --nodes 5000 --pods 100000": "takes minutes; tests/preview simulates smaller clusters",
    "podway install": HOST,
    "podway install --conf-dir /etc/kubernetes/cni/net.d": HOST,
    "systemctl disable --now podway-agent": HOST,
    "podway uninstall": HOST,
    "podway uninstall --with-pods": HOST,
    "podway agent --node node1 --store sqlite:///var/lib/podway/store.db": HOST,
    "podway agent --node node1 --store sqlite:///var/lib/podway/store.db --interface eth1 --log-level debug": HOST,
    "podway agent --node node1 --store etcd://192.0.2.10:2379/podway": HOST,
    "podway controller --store etcd://192.0.2.10:2379/podway": ETCD,
    "podway lab up --store etcd": ETCD,
    "podway lab up --kubernetes --nodes 2": WHOLE,
    "podway lab up --kubernetes --pool 10.244.0.0/16 --pool fd10:244::/48": WHOLE,
    "podway lab kubectl get nodes": WHOLE,
    "podway lab kubectl -- apply -f pods.yaml": WHOLE,
    "podway controller --store kubernetes:": CONTROLLER,
    "podway controller --store kubernetes:///etc/kubernetes/admin.conf --log-level debug": CONTROLLER,
    "podway cluster install": CLUSTER,
    "podway cluster install --pool 10.244.0.0/16": CLUSTER,
    "podway cluster install --pool 10.128.0.0/14 --pool fd00:10:128::/48 --encapsulation vxlan": CLUSTER,
    "podway cluster install --image registry.example.com/podway:0.1.0": CLUSTER,
    "podway cluster install --dry-run > podway.yaml": CLUSTER,
    "podway cluster install --kube-proxy replace": CLUSTER,
    "podway cluster uninstall --image registry.example.com/podway:0.1.0": CLUSTER,
    "podway cluster upgrade": CLUSTER,
    "podway cluster upgrade --image registry.example.com/podway:0.1.0": CLUSTER,
    "podway cluster upgrade --rollback": CLUSTER,
    "podway cluster status": CLUSTER,
    "podway cluster status -o json": CLUSTER,
    "podway cluster uninstall": CLUSTER,
    "podway cluster uninstall --yes --with-pods": CLUSTER,
    "podway cluster uninstall --without-node node7": CLUSTER,
    "podway lab demo --keep": "leaves a lab whose name nobody knows before",
    "podway completion bash > /etc/bash_completion.d/podway": OWN_DIRECTORIES,
    'podway completion zsh > "${fpath[1]}/_podway"': OWN_DIRECTORIES,
    "podway completion fish > ~/.config/fish/completions/podway.fish": OWN_DIRECTORIES,
}
CAPTURES = "goes on for a minute; tests/system/test_system_capture.py pipes packets into tshark"
FLOWS = "shows nothing but why where the engine is off; tests/system/test_system_flows.py asks where it works"
SERVES = "serves for ever, by an API server; tests/system/test_system_kubernetes.py runs it"
SERVED = "wants a lab that serves Services; tests/lab/test_lab_services.py runs it in one"
CONSOLE = "serves until ^C; tests/console/test_console_lab.py runs it, on a port that is free"
NAMES = "lists what pods asked of a DNS; tests/system/test_system_names.py runs it"
NOT_RUN |= {
    "podway policy names": NAMES,
    "podway policy names www.example.com": NAMES,
    "podway controller --store kubernetes:": SERVES,
    "podway controller --store kubernetes:///etc/kubernetes/admin.conf --log-level debug": SERVES,
    "podway flows --follow --verdict denied": FLOWS,
    "podway flows --since 10m --pod shop/web --port 80": FLOWS,
    "podway flows --since 1h --from 'shop/*' --to 192.0.2.0/24 -o wide": FLOWS,
    "podway flows --policy shop/deny-all --last 20": FLOWS,
    "podway flows --by pod --verdict denied --top 10": FLOWS,
    "podway flows --since 10m -o jsonl": FLOWS,
    "podway flows --since 1h --service shop/web --verdict denied": FLOWS,
    "podway flows --since 1h --workload shop/web --dns '*.example.com'": FLOWS,
    "podway capture web -o - | wireshark -k -i -": CAPTURES,
    "podway capture web -o - | tshark -r -": CAPTURES,
    "podway capture shop/web --filter 'tcp port 80 and host shop/client' -c 100": CAPTURES,
    "podway plan -f policy.yaml --flows 24h": FLOWS,
    "podway policy audit": FLOWS,
    "podway policy audit shop/deny-all": FLOWS,
    "podway policy audit shop/deny-all --enforce": FLOWS,
    "podway flows --verdict audited --policy shop/deny-all --since 1d": FLOWS,
    "podway policy suggest shop": FLOWS,
    "podway policy suggest shop --since 2h": FLOWS,
    "podway console": CONSOLE,
    "podway console --lab demo --listen 127.0.0.1:9000": CONSOLE,
    "podway --store kubernetes: console": CONSOLE,
    "podway console --listen 192.0.2.7:8470 --anyone": CONSOLE,
    "podway console --requests-each 64 --streams-each 64": CONSOLE,
    "podway --store kubernetes: sysdump --no-doctor": "needs an API server; of a lab it is run below",
    "podway lab run --service web --serve 80": SERVED,
    "podway trace client service/web": SERVED,
}
STATUS = {"podway plan -f pools.yaml --exit-code": 3, "podway get routes node1 --watch": 124}
"""What ends with another exit status than 0; the last is that of timeout(1), which ends it."""

POOL = "{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: databases}, spec: {cidr: 10.99.0.0/24, %s}}"
NOBODYS = "nodeSelector: {matchLabels: {disk: ssd}}"

STORY = f"""\
podway lab up --nodes 3
podway lab run web --node node1 --ip 10.244.1.10 --serve 80
podway lab run client
podway lab exec client -- curl -s http://10.244.1.10
podway lab exec client -- ping -c1 10.244.1.10
podway trace web client
podway lab node node1 -- ip route
podway lab run shop/client --node node2
podway lab run fixed --node node1 --ip 10.244.1.77
podway lab run api --serve 8080 --port http=8080
podway lab exec shop/client -- ip route
+ podway lab run seven --node node2 --ip 10.244.2.7 --serve 80
+ podway lab run shop/db --node node3
+ for node in node1 node2 node3; do podway lab node $node -- ip route add 192.0.2.0/24 dev eth0; done
podway lab list
podway lab status
podway get nodes
podway get pods -A -o wide
podway get pod/web node/node1
podway get pods -l app=web,tier!=test -o json
podway get routes node1 --watch
podway describe node node1
podway describe pod web
podway describe pools
podway status
podway status node1 -o json
podway verify
podway verify --sample 200 -o json
podway verify --remote
podway trace shop/client 10.244.2.7 --port 80
podway trace node1 web --proto udp -o json
podway trace shop/client web --full
podway trace web 192.0.2.1 --dry-run
podway lab outside
podway lab exec client -- curl -s http://203.0.113.10
podway lab outside -- ip route
podway trace web outside --port 80
podway lab outside --remove
podway policy explain web client --port 80
podway policy explain web 192.0.2.1 --port 53 --proto udp
podway policy list web
podway policy list shop/client
podway policy lint
podway doctor --list
podway doctor node1 node2 -o json
podway doctor
podway flows
podway flows --by policy --since 1h
podway capture web --duration 3 -o web.pcapng
podway sysdump
podway sysdump -o dump.tar.gz
+ echo '{POOL % NOBODYS}' > pools.yaml; cp pools.yaml change.yaml
+ podway get config default -o yaml > config.yaml
podway plan -f pools.yaml
podway plan -f pools.yaml --exit-code
podway apply -f pools.yaml
podway plan --delete pool/databases --all
podway delete -f pools.yaml
podway apply -f pools.yaml -f config.yaml
podway delete pool databases
podway get pool ipv4 -o yaml > pool.yaml
podway snapshot -o cluster.json
podway plan --snapshot cluster.json -f pools.yaml
podway plan --snapshot cluster.json -f change.yaml
podway --store snapshot:cluster.json get pods -A
podway --store snapshot:cluster.json get blocks
podway set config vxlan.port=8472
podway set pool/ipv4 encapsulation=vxlan when=cross-subnet --wait
podway set node/node1 asn=64601
podway delete pod/web pod/shop/db
podway lab run web --serve 80 --label app=web
podway delete $(podway get pods -l app=web -o name)
+ podway lab run web; podway lab run shop/web
podway lab rm web
podway lab rm shop/web
podway lab node add node4
podway lab node kill node2
podway lab node start node2
podway lab node rm node2
podway lab down
podway lab up
podway lab down
podway lab up --lab six --nodes 5 --pool 10.244.0.0/16 --pool fd10::/48
podway lab down six
podway lab up --racks 2 --nodes 4 --encapsulation vxlan --when cross-subnet
podway lab node add node5 --rack 2
podway lab down
podway lab up --racks 2 --nodes 4 --tor bird
podway lab down
podway lab demo
podway simulate --nodes 200 --pods 8000 --pool 10.0.0.0/16 --pool fd10::/48 --only
podway simulate --nodes 1000 --pods 20000 --block-size 26 -o json
podway simulate --nodes 200 --pods 4000 --encapsulation vxlan --distribution store --only
source <(podway completion bash)
"""
"""All examples in an order in which each finds what it names; lines with a plus only prepare the others."""


def bare(example: str) -> str:
    return re.sub(r"\s+#.*$", "", example)


def test_every_example_is_run_or_it_is_said_why_not() -> None:
    told = [line for line in STORY.splitlines() if not line.startswith("+ ")]
    assert {bare(line) for _, line in EXAMPLES} == {*told, *NOT_RUN}
    assert not NOT_RUN.keys() & set(told)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_do_what_they_say(tmp_path: Path) -> None:
    name = f"e{os.getpid()}x"
    labs = (f"{name}a", f"{name}b")
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": path, "PODWAY_LAB": labs[0]}
    try:
        for line in STORY.splitlines():
            command = line.removeprefix("+ ").replace("six", labs[1])
            if "--watch" in command:
                command = f"timeout 3 {command}"
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300
            )
            assert done.returncode == STATUS.get(line, 0), f"{line}:\n{done.stdout}{done.stderr}"
    finally:
        for lab_name in labs:
            with contextlib.suppress(LabError):
                cluster.down(lab_name)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Keep commands from doing anything; give the list of those that were about to."""
    names: list[tuple[str, ...]] = []

    def invoke(self: click.Command, ctx: click.Context) -> None:
        names.append(tuple(ctx.command_path.replace("main", "podway", 1).split()))

    for command in (*COMMANDS.values(), lab._on_node):
        if not isinstance(command, click.Group):
            monkeypatch.setattr(command, "invoke", invoke.__get__(command))
    return names


@pytest.mark.parametrize(("words", "example"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_is_a_command_line_that_is_taken(
    words: tuple[str, ...],
    example: str,
    ran: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = lines_of(example)
    assert lines or example.startswith("systemctl ")
    for line in lines:
        result = CliRunner().invoke(root.main, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("words", [words for words in COMMANDS if len(words) > 1], ids=" ".join)
def test_every_command_shows_itself_in_an_example(words: tuple[str, ...], ran: list[tuple[str, ...]]) -> None:
    command = COMMANDS[words]
    for line in (line for example in examples(command) for line in lines_of(example)):
        CliRunner().invoke(root.main, shlex.split(line)[1:])
    assert [name for name in ran if name[: len(words)] == words], f"{' '.join(words)} has no example of its own"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_and_command_is_explained(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert (command.help or "").strip()
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, param.opts


def test_every_line_of_help_fits_a_terminal() -> None:
    for words in COMMANDS:
        result = CliRunner().invoke(root.main, [*words[1:], "--help"], terminal_width=80)
        assert result.exit_code == 0
        examples_begin = result.stdout.find("Examples:")
        for line in result.stdout[:examples_begin].splitlines():
            assert len(line) <= 80, line
            assert not re.search(r"[a-z,]\.\.\.$", line), f"a summary is cut off: {line}"
