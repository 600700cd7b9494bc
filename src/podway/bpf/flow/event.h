// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the agent is told, by a ring buffer. What does not fit is counted exactly (EVENTS_LOST).
#pragma once

// The last two the agent tells itself, when it goes through the table (podway.kernel.bpf.flow_survey): of a flow that
// goes on, and of one that the table gave up.
enum event_kind { FLOW_NEW, FLOW_REJUDGED, FLOW_END, PACKET_DROPPED, FLOW_LIVES, FLOW_EVICTED };

struct event {
	__u64 time;
	struct flow_key key;
	__u64 packets, bytes; // in the key's direction so far; PACKET_DROPPED: of that packet
	__u64 packets_back, bytes_back; // FLOW_END: in the other one
	__u64 made; // when the flow was; 0: there is none
	__u32 rule[2]; // egress, ingress
	__u32 identity[2]; // of destination, source
	__u32 ifindex; // where the packet is seen
	__u32 out; // the flow's way: the device
	__u32 lost; // how many events this processor could not tell so far
	__u16 processor;
	__u8 kind;
	__u8 reason;
	__u8 hook;
	__u8 flags;
	__u8 state;
	__u8 way;
	__u32 unused;
};

// Room for 31,000 events, a third of a second at 100,000 of them: the agent looks every tenth of a second.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} events SEC(".maps");

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

// The agent looks now and then without being woken; so many bytes that wait wake it. Once, and not at each event
// from then on, which would cost more than all the rest; the window is for processors that go past it together.
#define WAKE_AT (1 << 18)
#define WAKE_WINDOW (16 * sizeof(struct event))

// `back` is the flow's other direction, if its counters matter.
static __always_inline void tell_both(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				      const struct flow *back, __u8 kind, __u8 reason)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 losses = EVENTS_LOST;
	const __u64 *lost;
	__u64 waiting;

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
	event->unused = 0;
	waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	bpf_ringbuf_submit(event, waiting - WAKE_AT < WAKE_WINDOW ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

static __always_inline void tell(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				 __u8 kind, __u8 reason)
{
	tell_both(skb, packet, flow, NULL, kind, reason);
}
