// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Calls that were made before the engine began: who is called speaks first, as far as it can see. They are judged as
// calls all the same, in their own direction.
#pragma once

// Whether a packet may belong to what was under way: all pods that it concerns are as old. `settled` is told.
static __always_inline bool is_of_before(const struct packet *packet, bool *settled)
{
	const struct endpoint *source = endpoint_at(&packet->key.source);
	const struct endpoint *destination = endpoint_at(&packet->key.destination);
	const struct beginning *began = the_beginning();

	if (!began || (source && source->ifindex > began->newest) || (destination && destination->ifindex > began->newest))
		return false;
	*settled = packet->now >= began->settled;
	return true;
}

// Clients' ports are from here on, by default (ip_local_port_range), and hardly any server's.
#define FIRST_CLIENT_PORT 32768

// Whether a packet of no flow answers a call that was made before. Of a connection in whose midst it is, ports tell.
// TCP has no end of that, as an open connection may be silent for days: only a SYN opens one, which is judged in its
// own direction whatever flow there is (begins_anew). All that an open one sends has ACK, or is a RST (RFC 9293
// section 3.10.7.4).
static __always_inline bool answers_call_of_before(const struct packet *packet)
{
	bool to_client = bpf_ntohs(packet->key.source_port) < FIRST_CLIENT_PORT &&
			 bpf_ntohs(packet->key.destination_port) >= FIRST_CLIENT_PORT;
	bool settled;

	if (!is_of_before(packet, &settled))
		return false;
	if (packet->message == REPLY)
		return !settled;
	switch (packet->key.protocol) {
	case IPPROTO_TCP:
		if (packet->tcp_flags & TCP_SYN)
			return packet->tcp_flags & TCP_ACK && !settled;
		return to_client && packet->tcp_flags & (TCP_ACK | TCP_RST);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
		return to_client && !settled;
	default:
		return false;
	}
}

// Whether it is by their ports alone that such an answer's ends are known: who called may be who is said to answer,
// and as long as they talk nothing would show it. TCP shows it by a SYN, and of ICMP an answer is known as one.
static __always_inline bool only_ports_tell(const struct packet *packet)
{
	return packet->key.protocol != IPPROTO_TCP && packet->message != REPLY;
}

// Whether this node itself is whom a pod answers, so that the node called: it is not forwarded.
__noinline bool answers_node(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };

	if (!packet || packet->hook != FROM_POD)
		return false;
	set_ends(&fib, &packet->key.source, &packet->key.destination);
	return bpf_fib_lookup(skb, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

// Whether something may be about a packet that went before the engine began, and whose flow nobody knows: then it is
// harmless, as it is nothing to who did not send that packet, or get the rest of it.
__noinline bool is_about_before(const struct packet *packet)
{
	bool settled;

	return packet && is_of_before(packet, &settled) && !settled;
}
