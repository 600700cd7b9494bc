// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Other addresses and ports in the place of those of a packet, with its checksums.
#pragma once

#ifndef BPF_F_IPV6
#define BPF_F_IPV6 (1ULL << 7) // kernel 6.16, and 6.12.36: the sum of all the packet does not change with this
#endif

#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6

// Put another address and port in the place of the source, or of the destination. 0, or less if that failed.
__noinline int put_end(struct __sk_buff *skb, const struct packet *packet, const struct address *address,
		       __be16 port, bool source)
{
	const struct address *former;
	__be16 former_port;
	__u32 at, flags = 0, sum = 0;
	bool ipv4;

	if (!packet || !address)
		return -1;
	former = source ? &packet->key.source : &packet->key.destination;
	former_port = source ? packet->key.source_port : packet->key.destination_port;
	ipv4 = is_ipv4(former);
	if (packet->fragment != LATER_FRAGMENT && packet->key.protocol == IPPROTO_TCP) {
		sum = packet->l4 + TCP_CHECKSUM;
	} else if (packet->fragment != LATER_FRAGMENT && packet->key.protocol == IPPROTO_UDP) {
		sum = packet->l4 + UDP_CHECKSUM;
		flags = BPF_F_MARK_MANGLED_0;
	}
	if (ipv4) {
		at = ETH_HLEN + (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
		if (sum && bpf_l4_csum_replace(skb, sum, former->word[3], address->word[3], flags | BPF_F_PSEUDO_HDR | 4))
			return -1;
		if (bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), former->word[3],
					address->word[3], 4) ||
		    bpf_skb_store_bytes(skb, at, &address->word[3], 4, 0))
			return -1;
	} else {
		__s64 changed = bpf_csum_diff((void *)former->word, 16, (void *)address->word, 16, 0);

		at = ETH_HLEN + (source ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr));
		if (sum && bpf_l4_csum_replace(skb, sum, 0, changed, flags | BPF_F_PSEUDO_HDR | BPF_F_IPV6) &&
		    bpf_l4_csum_replace(skb, sum, 0, changed, flags | BPF_F_PSEUDO_HDR))
			return -1;
		// What has no checksum that makes up for it (SCTP, later fragments) changes the sum of all the packet, which
		// a device may have computed.
		if (bpf_skb_store_bytes(skb, at, address->word, 16, sum ? 0 : BPF_F_RECOMPUTE_CSUM))
			return -1;
	}
	// Of SCTP the port is the same: its checksum is over all data (the planner of Services sees to it).
	if (!sum || port == former_port)
		return 0;
	if (bpf_l4_csum_replace(skb, sum, former_port, port, flags | 2))
		return -1;
	return bpf_skb_store_bytes(skb, packet->l4 + (source ? 0 : 2), &port, sizeof(port), 0);
}

// Give an answer the name of the Service that was called. 0, or less if that failed.
static __always_inline int put_service(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow)
{
	if ((flow->flags & (FLOW_SERVICE | FLOW_REPLY)) != (FLOW_SERVICE | FLOW_REPLY) || packet->message > REPLY)
		return 0;
	return put_end(skb, packet, &flow->service, flow->service_port, true);
}
