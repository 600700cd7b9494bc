// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Answers of DNS towards pods whose policies name domains: the agent learns from each, and then lets the pod have it.
// So what a pod calls by a name is known before the pod knows it. Only answers of resolvers that the agent trusts are
// looked at; others pass, and teach nothing.
#pragma once

#define DNS_PORT 53
#define LONGEST_ANSWER 4080

struct answer {
	__u64 time; // CLOCK_MONOTONIC, ns
	__u32 ifindex; // the link of the pod that it is for
	__u16 length;
	__u8 held; // whether the pod waits for it; else it is a copy
	__u8 unused;
	__u8 packet[LONGEST_ANSWER]; // from the IP header on
};

// Room for 255 of them.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} answers SEC(".maps");

// The resolvers, each with the time (CLOCK_MONOTONIC, ns) until which the agent says that it listens: answers that
// come later pass, for else no name could be resolved while it is away.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u64);
} resolvers SEC(".maps");

// What was learned, for the next agent: until when (CLOCK_MONOTONIC, ns) an address bears a name. No program reads it.
struct learned_name {
	struct address address;
	char text[256]; // in lower case, without a dot at its end; then zeros
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct learned_name);
	__type(value, __u64);
} names SEC(".maps");

const struct {
	struct answer answer;
} described_answer SEC(".described") = {};

static __always_inline const __u64 *listening_to(const struct packet *packet, const struct flow *flow)
{
	const __u64 *until = bpf_map_lookup_elem(&resolvers, &packet->key.source);

	return !until && flow->flags & FLOW_SERVICE ? bpf_map_lookup_elem(&resolvers, &flow->service) : until;
}

// Whether a packet of a flow that may be is an answer to a pod whose policies name domains. Fragments, and what the
// kernel put together of several packets, are none: they could not be sent on. Nor is a segment of TCP: where one begins
// in its stream is for the receiver to say, so a pod could have it begin at what only looks like an answer.
static __always_inline bool may_teach(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow)
{
	const struct endpoint *pod;
	__be16 port = flow->flags & FLOW_SERVICE ? flow->service_port : packet->key.source_port;

	if (port != bpf_htons(DNS_PORT) || !(flow->flags & FLOW_REPLY) || packet->fragment || skb->gso_size ||
	    packet->key.protocol != IPPROTO_UDP)
		return false;
	pod = endpoint_at(&packet->key.destination);
	return pod && pod->flags & ENDPOINT_NAMES && listening_to(packet, flow);
}

// Give the agent an answer. True if it sends it on, so that the packet ends here.
static __noinline bool hand_over(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow)
{
	const __u64 *until;
	struct answer *answer;
	__u64 length = skb->len - ETH_HLEN;
	bool held;

	// Keeps `names` with the programs, and what is compared and what is used in one register, for the verifier.
	asm volatile("" ::"r"(&names));
	asm volatile("" : "+r"(length));
	if (!packet || !flow)
		return false;
	until = listening_to(packet, flow);
	held = until && (__s64)(*until - packet->now) > 0;
	if (length == 0 || length > LONGEST_ANSWER)
		return false;
	answer = bpf_ringbuf_reserve(&answers, sizeof(*answer), 0);
	if (!answer)
		return held; // as if it were lost: the pod asks again
	answer->time = packet->now;
	answer->ifindex = skb->ifindex;
	answer->length = length;
	answer->held = held;
	answer->unused = 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, answer->packet, length)) {
		bpf_ringbuf_discard(answer, 0);
		return false;
	}
	bpf_ringbuf_submit(answer, BPF_RB_FORCE_WAKEUP);
	return held;
}
