// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The table of flows: two entries for each connection, one a direction, both made before its first packet leaves.
#pragma once

enum flow_state {
	HALF_OPEN, // nothing came back yet
	REPLIED,   // of what is not TCP: an answer came
	ASSURED,   // ... and packets for more than two seconds
	OPEN,	   // TCP, both ways
	CLOSING,   // TCP, one end is done
	CLOSED,	   // TCP, both ends are
	RESET,
};

enum way {
	WAY_STACK,
	WAY_PEER, // into the pod at the other end of a link
	WAY_WIRE, // out of a device, behind the L2 header that goes with it
};

#define FLOW_REPLY 1	 // the direction of who was called
#define FLOW_STRAIGHT 2	 // may be carried past the stack: from pod to pod
#define FLOW_INCOMING 4	 // charged to the endpoint that was called
#define FLOW_SENT_FIN 8	 // in this direction
#define FLOW_FROM_NODE 16 // called by a process of this node itself
#define FLOW_SERVICE 32	 // called by a Service's address, whose name answers bear
#define FLOW_TO_ITSELF 64 // ... by the pod that is called, in its gateway's name
#define FLOW_OF_BEFORE 128 // only ports told who called, before the engine began: over when it has settled

struct flow {
	__u64 seen; // of this and `made`: CLOCK_MONOTONIC, ns
	__u64 packets, bytes; // of IP
	__u64 way_seen; // when the way was looked up; 0: never
	__u32 epoch; // as of which the verdict is known to hold
	__u32 from; // the pod's link that these packets come by; 0: another device
	__u32 ifindex; // the way: the device
	__u32 way_generation;
	__u16 mtu;
	__u8 way;
	__u8 state;
	__u8 reason; // KEPT, or why they are dropped
	__u8 flags;
	__u8 counted; // the hook by which they come: others count them only if that one did not see them
	__u8 overlay; // the way leads by a link-local gateway, as overlay devices have: what is behind may be narrower
	__u8 hardware[12]; // the way: destination and source
	__u32 owner; // whose quota: the ifindex of a pod's link; 0: nobody's
	// Judged by what, in the direction of who called: egress, then ingress.
	__u32 generation[2];
	__u32 identity[2]; // of destination, then source
	__u32 rule[2];
	__u64 made;
	struct address service; // FLOW_SERVICE: which
	__be16 service_port;
	__u8 unused2[2];
	// TCP (timing.h). Times are in units of 1024 ns, and turn after 73 minutes.
	__u32 sequence; // what follows the last that was sent in this direction; 0: it is not known
	__u32 sampled; // when something was sent last whose acknowledgement is awaited
	__u32 awaited; // the acknowledgement, in this direction, of what the other one sent
	__u32 asked; // ... when; 0: none is awaited
	__u32 rtt; // from here to who sends in this direction, and back, in µs; 0: it is not known
	__u32 rtt_seen; // when that was
	__u32 retransmitted; // packets of this direction that were sent again
	__u32 audited[2]; // the generations of the sets by which was told last what they would deny
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

// An entry that is being made; on no stack, for the verifier's sake.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} draft SEC(".maps");

static __always_inline struct flow *begin_flow(void)
{
	__u32 only_one = 0;
	struct flow *flow = bpf_map_lookup_elem(&draft, &only_one);

	if (flow)
		__builtin_memset(flow, 0, sizeof(*flow));
	return flow;
}

#define SECOND 1000000000ULL

// For how long a connection is kept when nothing is sent: the defaults of the kernel's connection tracking
// (Documentation/networking/nf_conntrack-sysctl.rst; nf_conntrack_proto_*.c).
static __always_inline __u64 lifetime(__u8 protocol, __u8 state)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return SECOND * (state == HALF_OPEN ? 120 : state == OPEN ? 432000 : state == RESET ? 10 : 120);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return SECOND * (state == ASSURED ? 120 : 30);
	case IPPROTO_SCTP:
		return SECOND * (state == HALF_OPEN ? 10 : 210);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return SECOND * 30;
	default:
		return SECOND * 600;
	}
}

__noinline bool has_settled(__u64 now)
{
	const struct beginning *began = the_beginning();

	return !began || now >= began->settled;
}

static __always_inline bool is_over(const struct flow_key *key, const struct flow *flow, __u64 now)
{
	if (flow->flags & FLOW_OF_BEFORE && has_settled(now))
		return true;
	return (__s64)(now - flow->seen) > (__s64)lifetime(key->protocol, flow->state);
}

// Whether a connection lives: what is sent one way keeps the other way open.
static __always_inline bool lives(const struct flow_key *key, struct flow *flow, __u64 now)
{
	struct flow_key back;
	const struct flow *other;

	if (!is_over(key, flow, now))
		return true;
	back = reversed(key);
	other = bpf_map_lookup_elem(&flows, &back);
	if (!other || is_over(&back, other, now))
		return false;
	flow->seen = other->seen;
	return true;
}
