// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// ICMP errors: each is about a packet, and passes if that packet belongs to a flow that may be.
#pragma once

// Have an error on its way into a pod quote the packet as the pod sent it: to the Service, not to the backend.
__noinline int quote_service(struct __sk_buff *skb, const struct packet *packet, const struct packet *quoted,
			     const struct flow *flow)
{
	__u32 ip, check, port;

	if (!packet || !quoted || !flow)
		return -1;
	ip = packet->l4 + sizeof(struct icmp);
	check = packet->l4 + offsetof(struct icmp, checksum);
	port = quoted->l4 + 2;
	if (is_ipv4(&flow->service)) {
		// The sum over all stays the same: the quoted header's own checksum makes up for the address.
		if (bpf_l3_csum_replace(skb, ip + offsetof(struct iphdr, check), quoted->key.destination.word[3],
					flow->service.word[3], 4) ||
		    bpf_skb_store_bytes(skb, ip + offsetof(struct iphdr, daddr), &flow->service.word[3], 4, 0))
			return -1;
	} else {
		__s64 changed = bpf_csum_diff((void *)quoted->key.destination.word, 16, (void *)flow->service.word, 16, 0);

		if (bpf_l4_csum_replace(skb, check, 0, changed, 0) ||
		    bpf_skb_store_bytes(skb, ip + offsetof(struct ipv6hdr, daddr), flow->service.word, 16, 0))
			return -1;
	}
	if (quoted->key.destination_port == flow->service_port)
		return 0;
	if (bpf_l4_csum_replace(skb, check, quoted->key.destination_port, flow->service_port, 2))
		return -1;
	return bpf_skb_store_bytes(skb, port, &flow->service_port, sizeof(flow->service_port), 0);
}

static __always_inline bool is_led(const struct flow *flow)
{
	return (flow->flags & (FLOW_SERVICE | FLOW_REPLY)) == FLOW_SERVICE;
}

__noinline int related(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet *quoted = begin_packet(QUOTED_PACKET);
	struct flow_key back;
	struct flow *flow = NULL;
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	int reason;

	if (!packet || !quoted)
		return TC_ACT_SHOT;
	// This node's own kernel tells its pods what became of what they sent.
	if (is_from_node(skb, packet)) {
		if (!parse_ip(skb, quoted, packet->l4 + sizeof(struct icmp), ipv6) && quoted->fragment != LATER_FRAGMENT &&
		    !parse_upper(skb, quoted, true))
			flow = bpf_map_lookup_elem(&flows, &quoted->key);
		return flow && is_led(flow) && quote_service(skb, packet, quoted, flow) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	reason = check_ends(skb, packet);
	if (reason == NOT_OURS)
		return TC_ACT_UNSPEC;
	if (!reason && (parse_ip(skb, quoted, packet->l4 + sizeof(struct icmp), ipv6) ||
			quoted->fragment == LATER_FRAGMENT || parse_upper(skb, quoted, true) ||
			quoted->message > REPLY || !equal(&quoted->key.source, &packet->key.destination)))
		reason = ICMP_ERROR_UNRELATED;
	// A pod can say something only of what was sent to it; routers are anybody (docs/guard.md).
	if (!reason && packet->hook == FROM_POD && !equal(&quoted->key.destination, &packet->key.source))
		reason = ICMP_ERROR_FORGED;
	if (!reason) {
		flow = bpf_map_lookup_elem(&flows, &quoted->key);
		if (!flow && is_about_before(packet))
			return leave_to_stack(skb);
		if (!flow && packet->hook == FROM_WIRE && is_callers(&quoted->key))
			return TC_ACT_UNSPEC; // which knows, perhaps, whom the packet was sent to at first
		if (!flow || flow->reason || !lives(&quoted->key, flow, packet->now))
			reason = ICMP_ERROR_UNRELATED;
	}
	if (reason || !flow)
		return drop(skb, packet, NULL, reason);
	if (is_led(flow)) { // on its way into the pod, whichever way it comes, it passes podway_to_pod
		if (packet->hook != TO_POD)
			return leave_to_stack(skb);
		return quote_service(skb, packet, quoted, flow) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	// It goes the way of what is sent to the sender of the packet that it is about.
	back = reversed(&quoted->key);
	flow = bpf_map_lookup_elem(&flows, &back);
	return flow ? go_on(skb, packet, flow) : leave_to_stack(skb);
}
