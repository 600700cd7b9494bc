"""A lab's DNS: the names of its Services, as Kubernetes' DNS specification has them (1.1.0, sections 2.2 to 2.4).

    python -m podway.lab.dns STORE READY_FD

It answers for `cluster.local` of what is in the store: for `web.default.svc.cluster.local` the addresses of the
Service, of a headless one those of its ready endpoints, of an ExternalName the name. Any other name is refused: it
knows nobody to ask. Ports' names (SRV) and addresses' names (PTR) are not there.
"""

import asyncio
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.resource import Key, Resource, key
from podway.services.maps import unpacked
from podway.services.planner import ServicePlanner
from podway.store.base import Event, Listing, Store
from podway.store.informer import Informer
from podway.store.open import open_store

DOMAIN = "cluster.local"
PORT = 53
TTL = 5
"""Seconds: a Service's address changes rarely, a headless one's endpoints often."""

_ZONE = dns.name.from_text(DOMAIN)
_VERSIONS = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}
_MAX_UDP = 1232
"""Bytes that pass everywhere without fragments (DNS flag day 2020)."""
_PLAIN_UDP = 512
"""What an asker takes that says nothing of it (RFC 1035 section 4.2.1)."""
_LENGTH = struct.Struct("!H")


class Names:
    """The names of Services, by what the store says."""

    def __init__(self) -> None:
        self._planner = ServicePlanner("")
        self._known: dict[str, set[Key]] = {}

    def hear(self, kind: type[Resource], told: Event | Listing[Resource]) -> None:
        """Take a change, or all objects of a kind."""
        known = self._known.setdefault(kind.KIND, set())
        if isinstance(told, Event):
            changed = {told.object.key if not isinstance(told.object, Resource) else key(told.object)}
            found = [told.object] if isinstance(told.object, Resource) and told.type != "deleted" else []
        else:
            changed, found = set(known), list(told.items)
        for obj in found:
            self._planner.put(obj)
            known.add(key(obj))
        for gone in changed - {key(obj) for obj in found}:
            self._planner.drop(gone)
            known.discard(gone)

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """Return the response to a query."""
        response = dns.message.make_response(query)
        if len(query.question) != 1 or query.opcode() != dns.opcode.QUERY:
            response.set_rcode(dns.rcode.NOTIMP)
            return response
        asked = query.question[0]
        if asked.rdclass != dns.rdataclass.IN or not asked.name.is_subdomain(_ZONE):
            response.set_rcode(dns.rcode.REFUSED)
            return response
        response.flags |= dns.flags.AA
        service = self._service(asked.name)
        if service is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif service.spec.type == "ExternalName":
            target = f"{service.spec.external_name.rstrip('.')}."
            response.answer.append(dns.rrset.from_text(asked.name, TTL, "IN", "CNAME", target))
        elif addresses := sorted(self._addresses(service, _VERSIONS.get(asked.rdtype, 0))):
            response.answer.append(dns.rrset.from_text_list(asked.name, TTL, "IN", asked.rdtype, addresses))
        return response

    def _service(self, name: dns.name.Name) -> Service | None:
        labels = [label.decode("ascii", "replace").lower() for label in name.relativize(_ZONE).labels]
        if len(labels) != 3 or labels[2] != "svc":
            return None
        return self._planner.service((labels[1], labels[0]))

    def _addresses(self, service: Service, version: int) -> set[str]:
        if not service.is_headless:
            return {str(address) for address in service.cluster_addresses if address.version == version}
        name = (service.metadata.namespace, service.metadata.name)
        return {
            unpacked(one.address)
            for offer in self._planner.offers(name)
            for one in offer.endpoints
            if offer.version == version and (one.ready or service.spec.publish_not_ready_addresses)
        }


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # CPython's own transport of datagrams is not of this class before 3.12.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return  # nobody who asks for something
        assert self._transport is not None
        size = min(max(query.payload, _PLAIN_UDP), _MAX_UDP)
        self._transport.sendto(self._names.answer(query).to_wire(max_size=size, prefer_truncation=True), addr)


async def _converse(names: Names, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the queries of one connection until it ends (RFC 7766)."""
    try:
        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            query = dns.message.from_wire(await reader.readexactly(length))
            writer.write(names.answer(query).to_wire(prepend_length=True))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, dns.exception.DNSException):
        pass  # it ended, or speaks something else
    finally:
        writer.close()


async def serve(url: str, ready: int) -> None:
    """Serve for ever; tell through `ready`, a pipe's end, once all Services are known and port 53 is open."""
    names, store = Names(), open_store(url)
    kinds: Iterable[type[Resource]] = (Service, EndpointSlice, Pod)
    for kind in kinds:
        names.hear(kind, await store.list(kind))
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Datagrams(names), ("::", PORT))
    await asyncio.start_server(partial(_converse, names), "::", PORT)
    os.write(ready, b"ready")
    os.close(ready)
    async with asyncio.TaskGroup() as tasks:
        for informer in _informers(store, names, kinds):
            tasks.create_task(informer.run())


def _informers(store: Store, names: Names, kinds: Iterable[type[Resource]]) -> Iterator[Informer]:
    for kind in kinds:
        yield Informer(
            store,
            kind,
            version=None,
            hear=partial(names.hear, kind),
            lost=lambda error: print(error.message, file=sys.stderr, flush=True),
            reached=lambda: None,
        )


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
