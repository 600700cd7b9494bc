// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What a packet says of its connection: counters, states, and with them quotas.
#pragma once

// Each packet is counted where it comes in, once.
static __always_inline bool is_counted(const struct __sk_buff *skb, const struct packet *packet,
				       const struct flow *flow)
{
	if (packet->hook == TO_POD)
		return flow->counted == TO_POD || skb->tc_index != COUNTED;
	return flow->counted == packet->hook;
}

static __always_inline bool is_open(__u8 protocol, __u8 state)
{
	return protocol == IPPROTO_TCP && (state == OPEN || state == CLOSING);
}

static __always_inline __u8 next_state(const struct packet *packet, const struct flow *flow)
{
	__u8 flags = packet->tcp_flags;

	if (packet->key.protocol != IPPROTO_TCP) {
		if (flow->state == HALF_OPEN)
			return flow->flags & FLOW_REPLY ? REPLIED : HALF_OPEN;
		return packet->now - flow->made > 2 * SECOND ? ASSURED : REPLIED;
	}
	if (packet->fragment == LATER_FRAGMENT)
		return flow->state;
	if (flags & TCP_RST) // of one that has ended it is no second end: so does who closes with data unread
		return flow->state == CLOSED ? CLOSED : RESET;
	switch (flow->state) {
	case HALF_OPEN:
		return flow->flags & FLOW_REPLY ? OPEN : HALF_OPEN;
	case OPEN:
		return flags & TCP_FIN ? CLOSING : OPEN;
	case CLOSING: // the other end's
		return flags & TCP_FIN && !(flow->flags & FLOW_SENT_FIN) ? CLOSED : CLOSING;
	case RESET: // it was not heeded: the connection goes on
		return OPEN;
	}
	return flow->state;
}

__noinline int change_state(struct __sk_buff *skb, const struct packet *packet, struct flow *flow, __u8 next)
{
	const struct state *state = the_state();
	struct flow_key back;
	struct flow *other;
	struct quota *quota;
	__u8 before, protocol;

	if (!packet || !flow || !state)
		return 0;
	before = flow->state;
	protocol = packet->key.protocol;
	back = reversed(&packet->key);
	other = bpf_map_lookup_elem(&flows, &back);
	flow->state = next;
	if (other)
		other->state = next;
	quota = flow->owner ? quota_of(flow) : NULL;
	if (quota) {
		if (before == HALF_OPEN) {
			give_back(&quota->half_open_until, state->half_open);
			if (protocol != IPPROTO_TCP)
				take(&quota->replied_until, state->established, packet->now);
		}
		if (is_open(protocol, next) != is_open(protocol, before))
			__sync_fetch_and_add(&quota->open, is_open(protocol, next) ? 1ULL : -1ULL);
	}
	if (next == CLOSED || next == RESET)
		tell_both(skb, packet, flow, other, FLOW_END, KEPT);
	return 0;
}

static __always_inline void track(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	__u8 next = next_state(packet, flow);

	flow->seen = packet->now;
	__sync_fetch_and_add(&flow->packets, 1);
	__sync_fetch_and_add(&flow->bytes, skb->len - ETH_HLEN);
	time_segment(skb, packet, flow);
	if (next != flow->state)
		change_state(skb, packet, flow, next);
	if (packet->tcp_flags & TCP_FIN)
		flow->flags |= FLOW_SENT_FIN;
}

// Whether a packet begins another connection between the ports of one that is over; or calls who called, which the
// verdict on that call says nothing of. So it is with both ends that call at once (RFC 9293 section 3.5), too: where
// the second may not, it is not heard, and answers the first.
static __always_inline bool begins_anew(const struct packet *packet, const struct flow *flow)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN &&
	       (flow->state >= CLOSED || flow->flags & FLOW_REPLY);
}
