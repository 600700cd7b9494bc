// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the agent is told, by a ring buffer. What does not fit is counted exactly (EVENTS_LOST).
#pragma once

enum event_kind { FLOW_NEW, FLOW_REJUDGED, FLOW_END, PACKET_DROPPED };

struct event {
	__u64 time;
	struct flow_key key;
	__u64 packets, bytes; // FLOW_END: in the key's direction so far
	__u32 rule[2]; // egress, ingress
	__u32 identity[2]; // of destination, source
	__u32 ifindex;
	__u8 kind;
	__u8 reason;
	__u8 hook;
	__u8 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
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

static __always_inline void tell(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow,
				 __u8 kind, __u8 reason)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u64 waiting;

	if (!event) {
		count(EVENTS_LOST);
		return;
	}
	event->time = packet->now;
	event->key = packet->key;
	event->packets = flow ? flow->packets : 0;
	event->bytes = flow ? flow->bytes : 0;
	event->rule[0] = flow ? flow->rule[0] : 0;
	event->rule[1] = flow ? flow->rule[1] : 0;
	event->identity[0] = flow ? flow->identity[0] : 0;
	event->identity[1] = flow ? flow->identity[1] : 0;
	event->ifindex = skb->ifindex;
	event->kind = kind;
	event->reason = reason;
	event->hook = packet->hook;
	event->flags = flow ? flow->flags : 0;
	waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	bpf_ringbuf_submit(event, waiting - WAKE_AT < WAKE_WINDOW ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}
