"""The plugin from end to end: the compiled shim, executed as a runtime does, and the server."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from podway.api.lease import MAX_CONTAINER_ID, Attachment
from podway.cni import spec
from podway.cni.frames import decode_request, encode_answer, request_length
from podway.cni.server import CniServer
from tests.cni.cni_runtime import MemoryNetwork, Runtime, serving

CONFIG = {"cniVersion": "1.1.0", "name": "podway", "type": "podway"}


def config(**fields: object) -> dict[str, object]:
    return {**CONFIG, **fields}


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_version_needs_no_agent_and_echoes_the_version_asked_in(runtime: Runtime, version: str) -> None:
    answer = runtime.run("VERSION", {"cniVersion": version})
    assert answer.status == 0
    assert answer.output == {"cniVersion": version, "supportedVersions": list(spec.VERSIONS)}


@pytest.mark.kernel
@pytest.mark.parametrize("version", spec.VERSIONS)
def test_add_check_delete(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str, version: str
) -> None:
    added = runtime.run("ADD", config(cniVersion=version), CNI_NETNS=netns, CNI_IFNAME="net1")
    assert added.status == 0
    assert added.output["cniVersion"] == version
    pod_end = added.output["interfaces"][1]
    assert (pod_end["name"], pod_end["sandbox"]) == ("net1", netns)
    assert added.output["ips"][0]["address"] == "10.244.1.1/32"
    assert added.output["ips"][0]["interface"] == 1

    with_result = config(cniVersion=version, prevResult=added.output)
    checked = runtime.run("CHECK", with_result, CNI_NETNS=netns, CNI_IFNAME="net1")
    if version.startswith("0.3"):
        assert (checked.status, checked.output["code"]) == (1, 1)
    else:
        assert (checked.status, checked.output) == (0, None)

    for _ in range(2):
        deleted = runtime.run("DEL", with_result, CNI_NETNS=netns, CNI_IFNAME="net1")
        assert (deleted.status, deleted.output) == (0, None)
    assert network.leases == {}


@pytest.mark.kernel
def test_the_same_add_twice_gives_the_same_result(runtime: Runtime, agent: CniServer, netns: str) -> None:
    first, second = (runtime.run("ADD", CNI_NETNS=netns) for _ in range(2))
    assert first.status == 0
    assert first.output == second.output


@pytest.mark.kernel
def test_a_chained_add_extends_the_result_before_it(runtime: Runtime, agent: CniServer, netns: str) -> None:
    before = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "dummy0", "sandbox": netns}],
        "ips": [{"address": "192.0.2.1/24", "interface": 0}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    answer = runtime.run("ADD", config(cniVersion="1.0.0", prevResult=before), CNI_NETNS=netns)
    assert [link["name"] for link in answer.output["interfaces"]][::2] == ["dummy0", "eth0"]
    assert [(ip["address"], ip["interface"]) for ip in answer.output["ips"]] == [
        ("192.0.2.1/24", 0),
        ("10.244.1.1/32", 2),
    ]
    assert answer.output["dns"] == {"nameservers": ["192.0.2.53"]}


@pytest.mark.kernel
def test_what_runtimes_pass_reaches_the_network(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str
) -> None:
    arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=7;IP=10.244.1.9;X=y"
    settings = config(ipv6Pools=["six"], runtimeConfig={"ips": ["fd00::9/64"]})
    runtime.run("ADD", settings, CNI_NETNS=netns, CNI_ARGS=arguments)
    request = network.requests[-1]
    assert str(request.pod) == "shop/web-0"
    assert [str(address) for address in request.addresses] == ["10.244.1.9", "fd00::9"]
    assert request.pools == {6: ("six",)}


@pytest.mark.kernel
def test_gc_keeps_what_is_valid(runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str) -> None:
    for container in "abc":
        runtime.run("ADD", CNI_NETNS=netns, CNI_CONTAINERID=container)
    valid = [{"containerID": "b", "ifname": "eth0"}]
    answer = runtime.run("GC", config(**{"cni.dev/valid-attachments": valid}), CNI_CONTAINERID=None)
    assert (answer.status, answer.output) == (0, None)
    assert [attachment.container for attachment in network.leases] == ["b"]
    runtime.run("GC", config(**{"cni.dev/valid-attachments": None}))
    assert network.leases == {}


@pytest.mark.kernel
def test_status_and_a_full_pool(runtime: Runtime, netns: str) -> None:
    with serving(runtime, MemoryNetwork(size=1)):
        assert runtime.run("STATUS").status == 0
        assert runtime.run("ADD", CNI_NETNS=netns).status == 0
        assert runtime.run("STATUS").output["code"] == 50
        full = runtime.run("ADD", CNI_NETNS=netns, CNI_CONTAINERID="c2")
        assert (full.status, full.output["code"]) == (1, spec.Code.POOL_EXHAUSTED)
        assert full.output["details"] == "add a pool"


@pytest.mark.kernel
def test_delete_after_the_namespace_vanished(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str
) -> None:
    runtime.run("ADD", CNI_NETNS=netns)
    assert runtime.run("DEL", CNI_NETNS="/proc/gone/ns/net").status == 0
    assert network.leases == {}
    assert runtime.run("DEL", CNI_NETNS=None).status == 0


BAD_INPUT: dict[str, tuple[Any, dict[str, Any], int, str]] = {
    "not JSON": (b"{", {}, 6, "not JSON"),
    "no UTF-8": (b'{"name": "\xff"}', {}, 6, "not JSON"),
    "nothing": (b"", {}, 6, "not JSON"),
    "a list": (b"[]", {}, 7, "object"),
    "name of a wrong type": (config(name=7), {}, 7, "$.name"),
    "no name": (config(name=""), {}, 7, "no name"),
    "a bad name": (config(name="../etc"), {}, 7, "../etc"),
    "unknown field": (config(ipv4Pool=["a"]), {}, 7, "ipv4Pool"),
    "a field that is the cluster's": (config(mtu=1400), {}, 7, "mtu: unknown"),
    "no version": ({"name": "podway", "type": "podway"}, {}, 1, "0.1.0"),
    "a version that does not exist": (config(cniVersion="9.9.9"), {}, 1, "9.9.9"),
    "masquerading": (config(ipMasq=True), {}, 2, "ipMasq: true"),
    "another IPAM": (config(ipam={"type": "host-local"}), {}, 2, 'ipam.type: "host-local"'),
    "a capability it has not": (config(capabilities={"mac": True}), {}, 2, "capabilities.mac: true"),
    "prevResult of a wrong shape": (config(prevResult={"ips": 3}), {}, 7, "prevResult"),
    "prevResult with a bad index": (
        config(prevResult={"ips": [{"address": "10.0.0.1/32", "interface": 0}]}),
        {},
        7,
        "$.ips[0].interface",
    ),
    "runtimeConfig.ips": (config(runtimeConfig={"ips": ["10.0.0"]}), {}, 7, "runtimeConfig.ips"),
    "two of one family": (config(runtimeConfig={"ips": ["10.0.0.1", "10.0.0.2"]}), {}, 7, "two IPv4"),
    "all variables missing": (
        CONFIG,
        {"CNI_CONTAINERID": None, "CNI_IFNAME": "", "CNI_NETNS": None},
        4,
        "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
    ),
    "no command": (CONFIG, {"CNI_COMMAND": ""}, 4, "CNI_COMMAND"),
    "an unknown command": (CONFIG, {"CNI_COMMAND": "ATTACH"}, 4, "CNI_COMMAND 'ATTACH'"),
    "a long container id": (CONFIG, {"CNI_CONTAINERID": "c" * 300}, 4, "CNI_CONTAINERID: 300"),
    "a slash in the container id": (CONFIG, {"CNI_CONTAINERID": "a/b"}, 4, "CNI_CONTAINERID: 'a/b'"),
    "a container id from a dot": (CONFIG, {"CNI_CONTAINERID": ".a"}, 4, "CNI_CONTAINERID: '.a'"),
    "a long interface name": (CONFIG, {"CNI_IFNAME": "e" * 16}, 4, "CNI_IFNAME"),
    "a colon in the interface name": (CONFIG, {"CNI_IFNAME": "eth0:1"}, 4, "CNI_IFNAME"),
    "a space in the interface name": (CONFIG, {"CNI_IFNAME": "eth 0"}, 4, "CNI_IFNAME"),
    "the loopback": (CONFIG, {"CNI_IFNAME": "lo"}, 4, "CNI_IFNAME"),
    "a missing namespace": (CONFIG, {"CNI_NETNS": "/run/netns/no"}, 4, "CNI_NETNS: /run/netns/no: No such"),
    "a namespace that is none": (CONFIG, {"CNI_NETNS": "/etc/passwd"}, 4, "CNI_NETNS: /etc/passwd is no"),
    "a namespace of another kind": (CONFIG, {"CNI_NETNS": "/proc/self/ns/uts"}, 4, "is no network namespace"),
    "the node's namespace": (CONFIG, {"CNI_NETNS": "/proc/self/ns/net"}, 4, "the node's own"),
    "arguments that are no pairs": (CONFIG, {"CNI_ARGS": "IP"}, 4, "CNI_ARGS: 'IP'"),
    "unknown arguments": (CONFIG, {"CNI_ARGS": "COLOUR=red"}, 4, "CNI_ARGS: COLOUR"),
    "an argument that is no address": (CONFIG, {"CNI_ARGS": "IP=10.0.0.300"}, 4, "IP=10.0.0.300"),
    "an argument that is no name": (CONFIG, {"CNI_ARGS": "K8S_POD_NAME=a b"}, 4, "K8S_POD_NAME"),
}


@pytest.mark.kernel
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_with_code_and_advice(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str, name: str
) -> None:
    settings, variables, code, part = BAD_INPUT[name]
    answer = runtime.run("ADD", settings, **{"CNI_NETNS": netns, **variables})
    assert answer.status == 1
    assert (answer.output["code"], answer.output["cniVersion"]) == (code, "1.1.0")
    assert part in answer.output["msg"]
    assert answer.output["details"]
    assert network.requests == []


def test_the_nearest_known_field_is_named(runtime: Runtime, agent: CniServer) -> None:
    answer = runtime.run("ADD", config(ipv4Pool=["a"]))
    assert "'ipv4Pools'" in answer.output["details"]


def test_the_mtu_is_the_clusters(runtime: Runtime, agent: CniServer) -> None:
    answer = runtime.run("ADD", config(mtu=1400))
    assert "NetworkConfig" in answer.output["details"]


def test_gc_without_a_list_and_check_without_a_result_are_refused(runtime: Runtime, agent: CniServer) -> None:
    assert "cni.dev/valid-attachments" in runtime.run("GC").output["msg"]
    assert "prevResult" in runtime.run("CHECK", CNI_NETNS="/proc/self/ns/net").output["msg"]


@pytest.mark.parametrize(
    ("command", "version", "code"), [("CHECK", "0.3.1", 1), ("GC", "1.0.0", 1), ("STATUS", "1.0.0", 1)]
)
def test_commands_exist_from_a_version_on(
    runtime: Runtime, agent: CniServer, command: str, version: str, code: int
) -> None:
    answer = runtime.run(command, config(cniVersion=version))
    assert (answer.output["code"], answer.output["cniVersion"]) == (code, version)


def test_too_much_configuration_and_too_many_variables(runtime: Runtime, agent: CniServer) -> None:
    assert runtime.run("ADD", b" " * (spec.MAX_STDIN + 1)).output["code"] == 7
    assert runtime.run("ADD", CNI_ARGS="x" * (spec.MAX_ENVIRONMENT + 1)).output["code"] == 4


def test_the_longest_container_id_is_accepted(runtime: Runtime, agent: CniServer) -> None:
    assert runtime.run("DEL", CNI_CONTAINERID="c" * MAX_CONTAINER_ID).status == 0
    assert runtime.run("DEL", CNI_CONTAINERID="c" * (MAX_CONTAINER_ID + 1)).output["code"] == 4


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_without_an_agent(runtime: Runtime, command: str, code: int) -> None:
    answer = runtime.run(command, {"prevResult": {"cniVersion": "0.3.0"}, "cniVersion": "1.0.0"})
    assert answer.status == 1
    assert (answer.output["code"], answer.output["cniVersion"]) == (code, "1.0.0")
    assert str(runtime.socket) in answer.output["msg"]


def test_a_path_of_any_bytes_makes_no_broken_json(runtime: Runtime) -> None:
    answer = runtime.run("ADD", PODWAY_CNI_SOCKET='/run/"\\\x01é')
    assert answer.output["code"] == 11


@pytest.mark.kernel
def test_delete_without_an_agent_is_carried_out_when_it_starts(
    runtime: Runtime, network: MemoryNetwork, netns: str
) -> None:
    with serving(runtime, network):
        runtime.run("ADD", CNI_NETNS=netns)
        runtime.run("ADD", CNI_NETNS=netns, CNI_IFNAME="net1")
    for _ in range(2):
        gone = runtime.run("DEL", CNI_NETNS=netns)
        assert (gone.status, gone.output) == (0, None)
    assert runtime.spooled == ["c1:eth0"]
    with serving(runtime, network):
        assert list(network.leases) == [Attachment("c1", "net1")]
        assert runtime.spooled == []


@pytest.mark.kernel
def test_an_add_cancels_the_delete_that_waits(runtime: Runtime, agent: CniServer, netns: str) -> None:
    with_no_agent = {"PODWAY_CNI_SOCKET": str(runtime.directory / "nobody")}
    assert runtime.run("DEL", **with_no_agent).status == 0
    assert runtime.spooled == ["c1:eth0"]
    assert runtime.run("ADD", CNI_NETNS=netns).status == 0
    assert runtime.spooled == []


def test_an_agent_that_appears_after_the_spooling_is_asked_at_once(runtime: Runtime) -> None:
    """The first connection breaks; on the second the spool file is there, and after it gone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.socket))
        listener.listen()
        seen = []

        def agent() -> None:
            listener.accept()[0].close()
            peer, _ = listener.accept()
            frame = b""
            while (length := request_length(frame)) is None or len(frame) < length:
                frame += peer.recv(65536)
            seen.append((runtime.spooled, decode_request(frame).environment["CNI_CONTAINERID"]))
            peer.sendall(encode_answer(0, b""))
            peer.close()

        thread = threading.Thread(target=agent)
        thread.start()
        assert runtime.run("DEL").status == 0
        thread.join()
    assert seen == [(["c1:eth0"], "c1")]
    assert runtime.spooled == []


def test_a_spool_that_cannot_be_written_never_blocks_a_delete(runtime: Runtime) -> None:
    answer = runtime.run("DEL", PODWAY_CNI_SPOOL="/proc/no/such")
    assert (answer.status, answer.output) == (0, None)
    assert "/proc/no/such" in answer.stderr


@pytest.mark.parametrize("container", [None, "", "a/b", "../../etc/x", "c" * 300])
def test_no_file_outside_the_spool(runtime: Runtime, container: str | None) -> None:
    answer = runtime.run("DEL", CNI_CONTAINERID=container)
    assert (answer.status, answer.output["code"]) == (1, 4)
    assert runtime.spooled == []


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\n\r\n", struct.pack("=III", spec.MAGIC, 0, spec.MAX_ANSWER + 1)]
)
def test_an_answer_that_is_none(runtime: Runtime, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.socket))
        listener.listen()

        def agent() -> None:
            peer, _ = listener.accept()
            peer.recv(65536)
            peer.sendall(reply)
            peer.close()

        thread = threading.Thread(target=agent)
        thread.start()
        assert runtime.run("ADD").output["code"] == 11
        thread.join()


@pytest.mark.slow
def test_an_agent_that_answers_in_drops_does_not_hold_the_runtime(runtime: Runtime) -> None:
    """The time is that of the whole exchange: else this answer would come whole, after a minute."""
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.socket))
        listener.listen()

        def agent() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.recv(65536)
                for byte in struct.pack("=III", spec.MAGIC, 0, 110) + b" " * 110:
                    peer.sendall(bytes([byte]))
                    if stop.wait(0.5):
                        return

        thread = threading.Thread(target=agent)
        thread.start()
        gone = runtime.run("DEL")
        stop.set()
        thread.join()
    assert gone.status == 0
    assert runtime.spooled == ["c1:eth0"]


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
@pytest.mark.parametrize("command", ["VERSION", "STATUS", "ADD"])
def test_an_answer_that_nobody_gets_is_no_success(runtime: Runtime, command: str, where: str) -> None:
    """Without an agent; a closed stdout must not become the descriptor of a socket either."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" >{where}', str(runtime.shim)],
        env=runtime.environment(command, CNI_NETNS="/proc/self/ns/net"),
        input=b'{"cniVersion": "1.1.0", "name": "podway", "type": "podway"}',
        capture_output=True,
    )
    assert done.returncode == spec.Code.IO_FAILURE
    assert b"podway: the answer cannot be written to stdout: " in done.stderr


@pytest.mark.kernel
@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_a_result_that_nobody_gets_is_no_success_and_can_be_deleted(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str, where: str
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" >{where}', str(runtime.shim)],
        env=runtime.environment("ADD", CNI_NETNS=netns),
        input=b'{"cniVersion": "1.1.0", "name": "podway", "type": "podway"}',
        capture_output=True,
    )
    assert done.returncode == spec.Code.IO_FAILURE
    assert runtime.run("DEL", CNI_NETNS=netns).status == 0
    assert network.leases == {}


def test_what_killed_shims_left_unfinished_is_removed(runtime: Runtime, network: MemoryNetwork) -> None:
    runtime.spool.mkdir()
    for name, age in ((".old", 3600), (".future", -3600), (".new", 0)):
        file = runtime.spool / name
        file.write_bytes(b"half a requ")
        os.utime(file, (time.time() - age, time.time() - age))
    with serving(runtime, network):
        assert runtime.spooled == [".new"]


@pytest.mark.kernel
@pytest.mark.slow
def test_no_delete_is_lost_while_agents_come_and_go(runtime: Runtime, network: MemoryNetwork, netns: str) -> None:
    containers = [f"c{number}" for number in range(200)]
    with serving(runtime, network):
        for container in containers:
            assert runtime.run("ADD", CNI_NETNS=netns, CNI_CONTAINERID=container).status == 0
    done = threading.Event()

    def flap() -> None:
        while not done.is_set():
            with serving(runtime, network):
                time.sleep(0.01)

    agents = threading.Thread(target=flap)
    agents.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda c: runtime.run("DEL", CNI_CONTAINERID=c), containers))
    finally:
        done.set()
        agents.join()
    assert {answer.status for answer in answers} == {0}
    with serving(runtime, network):
        assert network.leases == {}
    assert runtime.spooled == []


def test_the_shim_is_static_and_small(shim: Path) -> None:
    described = subprocess.run(["readelf", "-d", shim], capture_output=True, text=True).stdout
    assert "NEEDED" not in described
    assert os.stat(shim).st_size < 1 << 20
    assert json.loads(
        subprocess.run([shim], env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True).stdout
    )
