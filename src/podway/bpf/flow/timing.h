// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What TCP's sequence numbers tell (RFC 9293): how long round trips take, and what is sent again.
//
// A connection is seen in its middle. What passes here in one direction, and is acknowledged by what passes in the
// other, took the round trip from here to who acknowledges; both halves together are what the ends measure. One
// segment at a time is timed, in each direction one in a tenth of a second, and none that was sent again, as nobody
// knows which of both was acknowledged (RFC 6298 section 3). The least of some ten seconds is kept: it is the path's,
// while others have the time in them for which an end held its acknowledgement back.
//
// What is sent again has a number that was there already. Where its sender is a pod of this node that is exact; what
// came by the wire may have been overtaken there.
#pragma once

#define TICK_SHIFT 10 // ticks are 1024 ns
#define SAMPLE_EVERY (100000000ULL >> TICK_SHIFT)
#define RTT_HOLDS (10 * SECOND >> TICK_SHIFT)

static __always_inline __u32 ticks_at(__u64 now)
{
	return (__u32)(now >> TICK_SHIFT) | 1; // never 0
}

static __always_inline bool comes_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

// How many sequence numbers a segment takes: one for each byte, for SYN and for FIN.
static __always_inline __u32 numbers_of(const struct __sk_buff *skb, const struct packet *packet)
{
	__u32 length = packet->length ?: skb->len - ETH_HLEN, headers = packet->l4 - ETH_HLEN + packet->l4_length;

	return (length > headers ? length - headers : 0) + !!(packet->tcp_flags & TCP_SYN) + !!(packet->tcp_flags & TCP_FIN);
}

// Have the other direction await the acknowledgement of all that was sent; or, `ticks` being 0, nothing any more.
__noinline int await(const struct packet *packet, __u32 sequence, __u32 ticks)
{
	struct flow_key back;
	struct flow *other;

	if (!packet)
		return 0;
	back = reversed(&packet->key);
	other = bpf_map_lookup_elem(&flows, &back);
	if (other && (!other->asked || !ticks)) {
		other->awaited = sequence;
		other->asked = ticks;
	}
	return 0;
}

static __always_inline void take_sample(struct flow *flow, __u32 ticks)
{
	__u32 rtt = ((__u64)(ticks - flow->asked) << TICK_SHIFT) / 1000 ?: 1;

	flow->asked = 0;
	if (flow->rtt && rtt > flow->rtt && ticks - flow->rtt_seen < RTT_HOLDS)
		return;
	flow->rtt = rtt;
	flow->rtt_seen = ticks;
}

// Look at a segment of a known flow.
static __always_inline void time_segment(const struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	__u32 ticks = ticks_at(packet->now), numbers, end;
	bool again;

	if (packet->key.protocol != IPPROTO_TCP || packet->fragment || packet->tcp_flags & TCP_RST)
		return;
	if (flow->asked && packet->tcp_flags & TCP_ACK && !comes_before(packet->acknowledged, flow->awaited))
		take_sample(flow, ticks);
	numbers = numbers_of(skb, packet);
	if (!numbers)
		return;
	end = packet->sequence + numbers;
	again = flow->sequence && comes_before(packet->sequence, flow->sequence);
	if (!again || comes_before(flow->sequence, end))
		flow->sequence = end;
	if (again) {
		flow->retransmitted++;
		await(packet, 0, 0);
	} else if (ticks - flow->sampled >= SAMPLE_EVERY) {
		flow->sampled = ticks;
		await(packet, end, ticks);
	}
}

// A flow's first packet, whose two entries are made of one draft: have the way back, which is made first, await the
// acknowledgement of a SYN.
static __always_inline void time_first_back(const struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	if (packet->key.protocol != IPPROTO_TCP || (packet->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return;
	flow->awaited = packet->sequence + numbers_of(skb, packet);
	flow->asked = ticks_at(packet->now);
}

// ... and then its own direction know what was sent.
static __always_inline void time_first(struct flow *flow)
{
	flow->sequence = flow->awaited;
	flow->sampled = flow->asked;
	flow->awaited = flow->asked = 0;
}

// An entry is made anew from the other direction's, whose numbers are not its own.
static __always_inline void time_anew(struct flow *flow)
{
	flow->sequence = flow->sampled = flow->awaited = flow->asked = 0;
	flow->rtt = flow->rtt_seen = flow->retransmitted = 0;
}
