// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// ICMP errors: each is about a packet, and passes if that packet belongs to a flow that may be.
#pragma once

static __noinline int related(struct __sk_buff *skb, const struct packet *packet)
{
	struct packet *quoted = begin_packet(QUOTED_PACKET);
	struct flow_key back;
	struct flow *flow;
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	int reason;

	if (!packet || !quoted)
		return TC_ACT_SHOT;
	// This node's own kernel tells its pods what became of what they sent.
	if (is_from_node(skb, packet))
		return TC_ACT_UNSPEC;
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
		if (!flow || flow->reason || !lives(&quoted->key, flow, packet->now))
			reason = ICMP_ERROR_UNRELATED;
	}
	if (reason)
		return drop(skb, packet, NULL, reason);
	// It goes the way of what is sent to the sender of the packet that it is about.
	back = reversed(&quoted->key);
	flow = bpf_map_lookup_elem(&flows, &back);
	return flow ? go_on(skb, packet, flow) : leave_to_stack(skb);
}
