"""`podway get`, `apply`, `delete` on real stores."""

import json
import os
import pty
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from podway import __version__
from podway.api.columns import Column, age, age_of
from podway.api.decode import decode
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node_lease import micro_time
from podway.cli import main as root
from podway.cli import views
from podway.cli.output import format_table
from podway.cli.views import View
from tests.cli.conftest import Podway

CLUSTER = """\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Node
  metadata:
    name: n1
    labels: {rack: a}
    annotations: {podway.io/interface-addresses: "192.168.7.1/24,fd00:7::1/64"}
  status: {addresses: [{type: InternalIP, address: 192.168.7.1}, {type: InternalIP, address: "fd00:7::1"}]}
- {apiVersion: v1, kind: Namespace, metadata: {name: default}}
- {apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: n1, namespace: podway}}
- {apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}}
- apiVersion: podway.io/v1
  kind: IPPool
  metadata: {name: default}
  spec: {cidr: 10.244.0.0/16}
- apiVersion: podway.io/v1
  kind: AddressBlock
  metadata: {name: 10-244-1-0-24}
  spec: {cidr: 10.244.1.0/24, pool: default, node: n1}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, labels: {app: web}}
  spec: {nodeName: n1}
  status: {phase: Running, podIPs: [{ip: 10.244.1.5}, {ip: "fd00:244::5"}]}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: other}}
- apiVersion: v1
  kind: Secret
  metadata: {name: tor, namespace: default}
  stringData: {password: hunter2}
- apiVersion: podway.io/v1
  kind: BGPPeer
  metadata: {name: tor}
  spec:
    address: 192.168.7.254
    asn: 64601
    password: {secret: {namespace: default, name: tor, key: password}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: web, namespace: default}
  spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}
- apiVersion: policy.networking.k8s.io/v1beta1
  kind: ClusterNetworkPolicy
  metadata: {name: guests}
  spec: {tier: Admin, priority: 10, subject: {namespaces: {}}}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: default}
  spec: {selector: {app: web}, clusterIP: 10.96.0.10, ports: [{port: 80}]}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  endpoints: [{addresses: [10.244.1.1]}]
  ports: [{port: 80}]
- apiVersion: podway.io/v1
  kind: NodeCertificate
  metadata: {name: n1}
  spec: {request: "-----BEGIN CERTIFICATE REQUEST-----"}
- apiVersion: podway.io/v1
  kind: ClusterAuthority
  metadata: {name: default}
  spec:
    cluster: 6f0f1f0e-3c5a-4c0e-9d6e-0f0b7a4b6a11
    authorities:
    - {certificate: CA, privateKey: SECRET, notBefore: "2026-11-23T00:00:00Z", notAfter: "2027-11-23T00:00:00Z"}
"""


@pytest.fixture
def cluster(podway: Podway) -> Podway:
    podway("apply", "-f", "-", stdin=CLUSTER)
    return podway


def pool(name: str = "default", **spec: Any) -> str:
    return json.dumps({"apiVersion": "podway.io/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec})


def test_tables(cluster: Podway) -> None:
    assert cluster.lines("get", "pods") == [
        ["NAMESPACE", "NAME", "NODE", "IPS", "PHASE", "AGE"],
        ["default", "web", "n1", "10.244.1.5,fd00:244::5", "Running", "0s"],
    ]
    pool = ["default", "10.244.0.0/16", "/24", "1/1", "of", "256", "bgp", "none", "routed"]
    assert cluster.lines("get", "pools")[1] == pool
    assert cluster.lines("get", "blocks")[1] == ["10.244.1.0/24", "default", "n1", "0s"]
    node = cluster.lines("get", "nodes", "-o", "wide")[1]
    assert node[:3] == ["n1", "192.168.7.1,fd00:7::1", "10.244.1.0/24"]
    assert node[-4:] == ["192.168.7.0/24,fd00:7::/64", "none", "none", "rack=a"]
    assert cluster.lines("get", "config")[1] == ["default", "64512", "200ms", "x", "2", "auto", "0s"]


@pytest.mark.parametrize("view", [view for view in views.VIEWS if view.kind], ids=lambda view: view.names[0])
def test_every_name_of_a_kind_shows_the_same(cluster: Podway, view: View) -> None:
    first, *others = [cluster.lines("get", name, "-A", "-o", "wide") for name in view.names]
    assert len(first) > 1
    assert all(other == first for other in others)


def test_columns_are_aligned(cluster: Podway) -> None:
    header, *rows = cluster("get", "pods", "-A", "-o", "wide").splitlines()
    starts = [header.index(word) for word in header.split()]
    assert len(rows) == 2
    for row in rows:
        for start in starts:
            assert row[start] != " "
            assert start == 0 or row[start - 1] == " "
    assert "<none>" in rows[1]


@pytest.mark.parametrize(("silence", "words"), [(0, "alive"), (60, "silent for 60s"), (None, "never seen")])
def test_whether_an_agent_lives(cluster: Podway, silence: int | None, words: str) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "n2", "namespace": "podway"},
        "spec": {} if silence is None else {"renewTime": micro_time(time.time() - silence)},
    }
    cluster("apply", "-f", "-", stdin=json.dumps(node) + "\n---\n" + json.dumps(lease))
    assert words.split()[:2] == cluster.lines("get", "nodes", "n2")[1][3:-1][:2]


def test_other_leases_of_a_nodes_name_say_nothing_of_its_agent(cluster: Podway) -> None:
    """A kubelet has one in kube-node-lease, under the same name."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "spec": {"renewTime": micro_time(time.time())},
    }
    others = [{**lease, "metadata": {"name": "n2", "namespace": space}} for space in ("kube-node-lease", "zoo")]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}
    cluster("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, (node, *others))))
    assert cluster.lines("get", "nodes", "n2")[1][3:-1] == ["never", "seen"]


@pytest.mark.parametrize(("seen", "words"), [("60", "silent for 60s"), ("0", "alive"), ("x", "never seen")])
def test_whether_an_agent_lives_that_knows_no_leases(cluster: Podway, seen: str, words: str) -> None:
    """One of an older Podway, while the cluster is upgraded, or after its node went back to that."""
    when = f"{time.time() - float(seen):.0f}" if seen.isdecimal() else seen
    node: dict[str, object] = {"apiVersion": "v1", "kind": "Node"}
    node["metadata"] = {"name": "n2", "annotations": {"podway.io/agent-seen": when}}
    cluster("apply", "-f", "-", stdin=json.dumps(node))
    assert words.split()[:2] == cluster.lines("get", "nodes", "n2")[1][3:-1][:2]


def test_which_pods(cluster: Podway) -> None:
    def names(*args: str) -> list[str]:
        return [line[1] for line in cluster.lines("get", "pods", *args)[1:]]

    assert names() == ["web"]
    assert names("-n", "other") == ["db"]
    assert names("-A") == ["web", "db"]
    assert names("-A", "-l", "app=web") == ["web"]
    assert names("-A", "-l", "app!=web") == ["db"]
    assert names("-A", "-l", "app") == ["web"]
    assert names("-A", "-l", "!app") == ["db"]
    assert names("-l", "app==web, app") == ["web"]
    assert names("web") == ["web"]
    assert "cannot read" in cluster("get", "pods", "-l", "a=b=c", status=2)
    assert "Pod/default/db does not exist" in cluster("get", "pods", "db", status=1)
    assert "-A" in cluster("get", "pods", "-A", "-n", "x", status=2)
    assert "did you mean pods?" in cluster("get", "podss", status=2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pods"], ["pod/web"]),
        (["po", "-A"], ["pod/default/web", "pod/other/db"]),
        (["pods", "-n", "other"], ["pod/db"]),
        (["pods", "other/db", "web"], ["pod/other/db", "pod/web"]),
        (["pod/other/db", "node/n1"], ["pod/other/db", "node/n1"]),
        (["no,pools"], ["node/n1", "ippool/default"]),
        (["IPPool/default"], ["ippool/default"]),
        (["ippools.podway.io"], ["ippool/default"]),
        (["config/"], ["networkconfig/default"]),
    ],
)
def test_names_are_taken_as_people_write_them_and_printed_as_they_are_taken(
    cluster: Podway, words: list[str], expected: list[str]
) -> None:
    printed = cluster("get", *words, "-o", "name").split()
    assert printed == expected
    if "-n" not in words:
        assert cluster("get", *printed, "-o", "name").split() == [
            name.replace("/default/", "/") for name in expected
        ]


def test_several_kinds_are_several_tables_and_one_list(cluster: Podway) -> None:
    tables = cluster("get", "pods,nodes").split("\n\n")
    assert [table.split()[0] for table in tables] == ["NAMESPACE", "NAME"]
    listed = json.loads(cluster("get", "pod/web", "node/n1", "-o", "json"))
    assert [item["kind"] for item in listed["items"]] == ["Pod", "Node"]


def test_deleting_by_printed_names(cluster: Podway) -> None:
    assert cluster("delete", "pod/web", "pod/other/db") == "Pod/default/web deleted\nPod/other/db deleted\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pod", "web"], ["nodeName: n1", "ip 10.244.1.5", "10.244.1.0/24 of n1, pool default", "podway trace"]),
        (["node/n1"], ["rack: a", "default/web on n1, 10.244.1.5", "10.244.1.0/24", "podway status n1"]),
        (["pools"], ["cidr: 10.244.0.0/16", "10.244.1.0/24 of n1", "podway get pools default -o yaml"]),
        (["blocks"], ["pool: default", "default/web on n1", "podway describe node n1"]),
        (["ns", "default"], ["default/web on n1"]),
        (["secret", "tor"], ["Secret/default/tor"]),
        (["pod/other/db"], ["other/db", "blocks: none"]),
    ],
)
def test_describe_tells_the_fields_and_what_belongs_to_an_object(
    cluster: Podway, words: list[str], expected: list[str]
) -> None:
    page = cluster("describe", *words)
    for words_there in expected:
        assert words_there in page
    assert "hunter2" not in page
    assert "SECRET" not in cluster("describe", "authority")


def test_describe_of_what_is_not_there(cluster: Podway) -> None:
    assert "did you mean n1?" in cluster("describe", "node", "n2", status=1)


def test_output_can_be_applied_again(cluster: Podway) -> None:
    shown = cluster("get", "pool", "default", "-o", "yaml")
    (manifest,) = decode(shown, source="shown")
    assert isinstance(manifest.resource, IPPool)
    assert cluster("apply", "-f", "-", stdin=shown) == "IPPool/default unchanged\n"
    listed = json.loads(cluster("get", "pods", "-A", "-o", "json"))
    assert listed["kind"] == "List"
    assert [item["metadata"]["name"] for item in listed["items"]] == ["web", "db"]
    assert listed["items"][0]["status"]["podIPs"][1] == {"ip": "fd00:244::5"}
    assert json.loads(cluster("get", "pods", "-n", "none", "-o", "json"))["items"] == []


def test_apply_says_what_became_of_each(cluster: Podway, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.yaml"
    first.write_text(pool(cidr="10.244.0.0/16", excluded=["10.244.0.9"]))
    second.write_text(pool("more", cidr="10.245.0.0/16"))
    files = ("-f", str(first), "-f", str(second))
    assert cluster("apply", *files) == "IPPool/default configured\nIPPool/more created\n"
    assert cluster("apply", *files) == "IPPool/default unchanged\nIPPool/more unchanged\n"


def test_apply_leaves_what_agents_wrote(cluster: Podway) -> None:
    before = json.loads(cluster("get", "node", "n1", "-o", "json"))
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "b"}}}
    assert cluster("apply", "-f", "-", stdin=json.dumps(manifest)) == "Node/n1 configured\n"
    after = json.loads(cluster("get", "node", "n1", "-o", "json"))
    assert after["metadata"]["labels"] == {"rack": "b"}
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"] == before["status"]


def test_apply_with_an_old_version_is_refused(cluster: Podway) -> None:
    shown = cluster("get", "pool", "default", "-o", "yaml")
    cluster("apply", "-f", "-", stdin=pool(cidr="10.244.0.0/16", disabled=True))
    message = cluster("apply", "-f", "-", stdin=f"{pool('new', cidr='10.9.0.0/16')}\n---\n{shown}", status=1)
    assert "IPPool/default: metadata.resourceVersion: the object changed since it was read" in message
    assert "IPPool/new does not exist" in cluster("get", "pool", "new", status=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (pool("bad", cidr="10.245.0.1/16"), ["document 2, line 3", "IPPool/bad: spec.cidr", "10.245.0.0/16"]),
        (pool("bad", cidr="10.244.9.0/24"), ["document 2", "IPPool/bad: spec.cidr", "IPPool/default"]),
        (pool("bad", cidr="10.250.0.0/24"), ["IPPool/good: spec.cidr", "10.250.0.0/24 of IPPool/bad"]),
        (pool("bad", cidr="192.168.0.0/16"), ["Node/n1"]),
        (pool("bad", cidr="10.9.0.0/16", blocksize=3), ["spec.blocksize", "did you mean `blockSize`?"]),
        (pool("good", cidr="10.9.0.0/16"), ["IPPool/good", "stands at standard input, document 1"]),
        ("}", ["standard input, line 3", "not YAML or JSON"]),
    ],
)
def test_nothing_is_written_if_anything_is_wrong(cluster: Podway, wrong: str, words: list[str]) -> None:
    before = cluster("get", "pools")
    manifests = f"{pool('good', cidr='10.250.0.0/16')}\n---\n{wrong}\n"
    message = cluster("apply", "-f", "-", stdin=manifests, status=1)
    for word in ["podway: standard input", *words]:
        assert word in message
    assert "Traceback" not in message
    assert cluster("get", "pools") == before


def test_every_wrong_field_is_told_at_once(podway: Podway) -> None:
    message = podway("apply", "-f", "-", stdin=pool(cidr="x", cooldownSeconds=-1), status=1)
    assert message.count("podway: standard input") == 2


def test_manifests_that_cannot_be_read(podway: Podway, tmp_path: Path) -> None:
    assert "No such file" in podway("apply", "-f", "/nowhere/x.yaml", status=2)
    assert "Is a directory" in podway("apply", "-f", str(tmp_path), status=2)
    assert "holds no object" in podway("apply", "-f", "-", stdin="# nothing\n", status=1)
    (tmp_path / "latin").write_bytes(b"a: \xe9")
    assert "not UTF-8" in podway("apply", "-f", str(tmp_path / "latin"), status=1)
    assert "-f" in podway("apply", status=2)
    assert not (tmp_path / "store.db").exists()


def test_the_namespace_of_the_command_line(podway: Podway) -> None:
    stdin = '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}'
    assert podway("apply", "-n", "x", "-f", "-", stdin=stdin) == "Pod/x/web created\n"
    clash = stdin.replace('"web"', '"web", "namespace": "y"')
    assert "metadata.namespace: is not 'x'" in podway("apply", "-n", "x", "-f", "-", stdin=clash, status=1)


def test_delete(cluster: Podway) -> None:
    assert "Pod/default/web is in them" in cluster("delete", "pool", "default", status=1)
    assert "Node/n1" in cluster("delete", "block", "10-244-1-0-24", status=1)
    assert "Pod/default/no does not exist" in cluster("delete", "pod", "web", "no", status=1)
    assert cluster("delete", "pod", "web") == "Pod/default/web deleted\n"
    assert cluster("delete", "pod", "db", "-n", "other") == "Pod/other/db deleted\n"
    rest = CLUSTER[: CLUSTER.index("- apiVersion: v1\n  kind: Pod")]
    assert len(cluster("delete", "-f", "-", stdin=rest).splitlines()) == 6
    assert (
        cluster("get", "nodes", "-o", "json").strip()
        == '{\n  "apiVersion": "v1",\n  "kind": "List",\n  "items": []\n}'
    )
    assert "either" in cluster("delete", status=2)
    assert "either" in cluster("delete", "pod", "web", "-f", "-", status=2)
    assert "either" in cluster("delete", "pod", "-f", "-", status=2)
    assert "delete which pods?" in cluster("delete", "pod", status=2)


@pytest.mark.parametrize("words", [["node", "n2"], ["node/n2", "lease/podway/n2"], ["lease/podway/n2", "no/n2"]])
def test_a_deleted_nodes_name_is_free_at_once(cluster: Podway, words: list[str]) -> None:
    """The lease by which its agent showed that it lives goes, too, and nobody else's."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "spec": {"renewTime": micro_time(time.time())},
    }
    named = [("n1", "podway"), ("n2", "podway"), ("n2", "kube-node-lease")]
    leases = [{**lease, "metadata": {"name": name, "namespace": space}} for name, space in named]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}
    cluster("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, (node, *leases))))
    cluster("delete", *words)
    left = cluster("get", "leases", "-A", "-o", "name").split()
    assert {"lease/podway/n1", "lease/kube-node-lease/n2"} <= set(left)
    assert "lease/podway/n2" not in left


def test_rows_that_are_not_in_the_store(podway: Podway, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    class Row(msgspec.Struct):
        name: str

    live = views.View(
        ("things",),
        (Column("NAME", lambda row, _: row.name),),
        source=f"{__name__}:rows_for_test",
        row_kind="Thing",
    )
    monkeypatch.setitem(globals(), "rows_for_test", lambda options, names: [Row(options.lab), *map(Row, names)])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setitem(views.VIEW_BY_NAME, "things", live)
    assert podway("get", "things", "a") == "NAME\nlab\na\n"
    assert json.loads(podway("get", "things", "-o", "json"))["items"] == [
        {"apiVersion": "podway.io/v1", "kind": "Thing", "name": "lab"}
    ]
    assert "have no names" in podway("get", "things", "-o", "name", status=2)
    assert "cannot be changed or deleted" in podway("delete", "things", "a", status=2)


def run(*args: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PODWAY_")}
    code = "from podway.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        env={**env, **environment},
    )


def test_as_a_process(tmp_path: Path) -> None:
    assert run("--version").stdout == f"podway {__version__}\n"
    manifest = tmp_path / "pool.json"
    manifest.write_text(pool(cidr="10.244.0.0/16"))
    store = f"sqlite://{tmp_path}/store.db"
    assert run("apply", "-f", str(manifest), PODWAY_STORE=store).stdout == "IPPool/default created\n"
    assert "10.244.0.0/16" in run("--store", store, "get", "pools").stdout
    failed = run("get", "pools", PODWAY_STORE=f"sqlite://{tmp_path}/none.db")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"podway: store {tmp_path}/none.db does not exist\n  hint: ")
    assert failed.stdout == ""


def test_without_a_store_or_a_lab() -> None:
    missing = run("--lab", "nosuchlab0", "get", "pods")
    assert missing.returncode == 1
    assert missing.stderr.startswith("podway: no lab 'nosuchlab0'\n")
    assert "podway lab up --lab nosuchlab0" in missing.stderr
    assert "--store URL" in missing.stderr
    asked = run("--lab", "nosuchlab0", "status")
    assert asked.stderr.startswith("podway: no lab 'nosuchlab0', and no agent on this host\n")
    assert "not a lab's name" in run("get", "pods", PODWAY_LAB="../etc").stderr


def test_help_imports_no_command_and_nothing_slow() -> None:
    code = textwrap.dedent(
        """
        import sys
        from podway.cli.main import main
        try:
            main(["--help"])
        finally:
            slow = {"asyncio", "yaml", "msgspec", "sqlite3", "rich", "structlog", "podway.cli.get"}
            print(slow & set(sys.modules), file=sys.stderr)
        """
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stderr == "set()\n"
    for command in root.COMMANDS:
        assert f"\n  {command} " in result.stdout


def test_a_terminal_too_narrow_for_the_table(cluster: Podway) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", "from podway.cli.main import main; main()"]
    done = subprocess.run(
        [*command, "--store", cluster.url, "get", "nodes", "-o", "wide"],
        stdout=terminal,
        env={**os.environ, "COLUMNS": "40"},
        timeout=120,
    )
    os.close(terminal)
    output = os.read(controller, 65536).decode().replace("\r\n", "\n")
    os.close(controller)
    assert done.returncode == 0
    assert "NAME       n1\nADDRESSES  192.168.7.1,fd00:7::1\n" in output


@pytest.mark.parametrize("command", list(root.COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(root.main, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage: main" in result.output


def test_stacked_only_when_needed() -> None:
    rows = [["a", "b" * 30], ["c", ""]]
    assert format_table(["X", "LONG"], rows, width=34).splitlines()[0].split() == ["X", "LONG"]
    assert format_table(["X", "LONG"], rows, width=33) == f"X     a\nLONG  {'b' * 30}\n\nX     c\nLONG  <none>"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-5, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (700, "11m"),
        (3 * 3600, "3h"),
        (2 * 86400, "2d"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    assert age(seconds) == text


def test_age_of_a_time_stamp() -> None:
    assert age_of("1970-01-01T00:01:00Z", now=100) == "40s"
    assert age_of("", now=100) == ""


def test_services_get_addresses_outside_with_what_is_applied(podway: Podway) -> None:
    def serve(name: str) -> str:
        spec = "{type: LoadBalancer, ports: [{port: 80}]}"
        return f"---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {spec}}}\n"

    def shown() -> list[str]:
        return [line.split()[4] for line in podway("get", "services", "-A").splitlines()[1:]]

    podway("apply", "-f", "-", stdin=serve("a"))
    assert shown() == ["-"]
    podway("apply", "-f", "-", stdin=pool("outside", cidr="192.0.2.0/31", use="services"))
    assert shown() == ["192.0.2.0"]
    podway("apply", "-f", "-", stdin=serve("b") + serve("c"))
    assert shown() == ["192.0.2.0", "192.0.2.1", "-"]
    refused = podway("delete", "pool", "outside", status=1)
    assert "Service/default/a has 192.0.2.0, and 1 more have addresses of it" in refused
    assert "spec.cidr: cannot change" in podway("set", "pool/outside", "cidr=192.0.2.4/31", status=1)
    podway("delete", "service", "b")
    assert shown() == ["192.0.2.0", "192.0.2.1"]
