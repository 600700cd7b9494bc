// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Telling the agent of a packet and its flow.
#pragma once

// For BTF alone, which has no type that only a ring buffer uses; libbpf leaves such a section out.
const struct {
	struct event event;
	enum event_kind kind;
	enum reason reason;
	enum counter counter;
	enum verdict verdict;
	enum tier tier;
	enum way way;
	enum flow_state state;
	enum hook hook;
} described SEC(".described") = {};

// `back` is the flow's other direction, if its counters matter.
static __always_inline void tell_both(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				      const struct flow *back, __u8 kind, __u8 reason)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 losses = EVENTS_LOST;
	const __u64 *lost;

	if (!event) {
		count(EVENTS_LOST);
		return;
	}
	event->time = packet->now;
	event->key = packet->key;
	if (kind == PACKET_DROPPED) {
		event->packets = 1;
		event->bytes = skb->len - ETH_HLEN;
	} else {
		event->packets = flow ? flow->packets : 0;
		event->bytes = flow ? flow->bytes : 0;
	}
	event->packets_back = back ? back->packets : 0;
	event->bytes_back = back ? back->bytes : 0;
	event->made = flow ? flow->made : 0;
	event->rule[0] = flow ? flow->rule[0] : 0;
	event->rule[1] = flow ? flow->rule[1] : 0;
	event->identity[0] = flow ? flow->identity[0] : 0;
	event->identity[1] = flow ? flow->identity[1] : 0;
	event->ifindex = skb->ifindex;
	event->out = flow && flow->way != WAY_STACK ? flow->ifindex : 0;
	lost = bpf_map_lookup_elem(&counters, &losses);
	event->lost = lost ? *lost : 0;
	event->processor = bpf_get_smp_processor_id();
	event->kind = kind;
	event->reason = reason;
	event->hook = packet->hook;
	event->flags = flow ? flow->flags : 0;
	event->state = flow ? flow->state : HALF_OPEN;
	event->way = flow ? flow->way : WAY_STACK;
	event->detail = 0;
	event->rtt = back ? back->rtt : 0;
	event->rtt_back = back && flow ? flow->rtt : 0;
	event->retransmitted = back && flow ? flow->retransmitted : 0;
	event->retransmitted_back = back ? back->retransmitted : 0;
	if (flow && flow->flags & FLOW_SERVICE) {
		event->service = flow->service;
		event->service_port = flow->service_port;
	} else {
		__builtin_memset(&event->service, 0, sizeof(event->service));
		event->service_port = 0;
	}
	__builtin_memset(event->unused, 0, sizeof(event->unused));
	submit(event);
}

static __always_inline void tell(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				 __u8 kind, __u8 reason)
{
	tell_both(skb, packet, flow, NULL, kind, reason);
}
