// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the agent is told, by a ring buffer. What does not fit is counted exactly (EVENTS_LOST).
#pragma once

// Two the agent tells itself, when it goes through the table (podway.kernel.bpf.flow_survey): FLOW_LIVES of a flow that
// goes on, and FLOW_EVICTED of one that the table gave up. FLOW_AUDITED: policies that only report would deny it.
enum event_kind { FLOW_NEW, FLOW_REJUDGED, FLOW_END, PACKET_DROPPED, FLOW_LIVES, FLOW_EVICTED, FLOW_AUDITED };

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
	__u32 detail; // DROPPED_BY_KERNEL: enum skb_drop_reason, as the kernel at hand numbers it
	__u32 rtt, rtt_back; // of TCP, in µs: from here to the key's destination and back, to its source and back
	__u32 retransmitted, retransmitted_back; // of TCP: packets in the key's direction, in the other one
	struct address service; // FLOW_SERVICE: which was called
	__be16 service_port;
	__u8 unused[6]; // 0
};

// Room for 23,800 events, a quarter of a second at 100,000 of them: the agent looks every tenth of a second.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} events SEC(".maps");

// The agent looks now and then without being woken; so many bytes that wait wake it. Once, and not at each event
// from then on, which would cost more than all the rest; the window is for processors that go past it together.
#define WAKE_AT (1 << 18)
#define WAKE_WINDOW (16 * sizeof(struct event))

static __always_inline void submit(struct event *event)
{
	__u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);

	bpf_ringbuf_submit(event, waiting - WAKE_AT < WAKE_WINDOW ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}
