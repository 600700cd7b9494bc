// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Refusals that the sender hears of: the packet that is refused is made into its answer, in the name of whom it was
// sent to. TCP is answered with RST (RFC 9293 section 3.10.7.1), what else a pod sends with ICMP (RFC 792, RFC 4443).
// What cannot be answered is dropped: fragments, what has IP options or extension headers, a RST.
#pragma once

#define TCP_CHECK 16 // where the checksum is in TCP's header
#define QUOTED 8     // bytes of the upper header that an ICMP error quotes at least (RFC 792)

// The words of TCP's header as they are computed with.
struct tcp_header {
	__be16 source, destination;
	__be32 sequence, acknowledged;
	__u8 length, flags; // the upper four bits: in words
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

static __always_inline __u16 folded(__s64 sum)
{
	__u32 all = sum;

	all = (all & 0xffff) + (all >> 16);
	all = (all & 0xffff) + (all >> 16);
	return all;
}

// The sum of the pseudo header of an answer. Who sends and who gets it may change places in a sum, and the one of
// IPv4 is that of IPv6 with less in it (RFC 9293 section 3.1, RFC 8200 section 8.1).
static __always_inline __u16 pseudo_sum(const struct packet *packet, __u8 protocol, __u32 length)
{
	struct {
		struct address source, destination;
		__be32 length, protocol;
	} pseudo = { packet->key.source, packet->key.destination, bpf_htonl(length), bpf_htonl(protocol) };

	if (is_ipv4(&packet->key.source))
		pseudo.source.word[2] = pseudo.destination.word[2] = 0;
	return folded(bpf_csum_diff(NULL, 0, (void *)&pseudo, sizeof(pseudo), 0));
}

// Write the IP header of an answer with so many bytes in it, and the addresses of the link.
static __always_inline int write_heads(struct __sk_buff *skb, const struct packet *packet, __u8 protocol, __u16 length)
{
	__u8 hardware[12], swapped[12];

	if (bpf_skb_load_bytes(skb, 0, hardware, sizeof(hardware)))
		return -1;
	__builtin_memcpy(swapped, hardware + 6, 6);
	__builtin_memcpy(swapped + 6, hardware, 6);
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), BPF_F_RECOMPUTE_CSUM))
		return -1;
	if (is_ipv4(&packet->key.source)) {
		struct iphdr ip = {
			.version = 4,
			.ihl = sizeof(ip) / 4,
			.tot_len = bpf_htons(sizeof(ip) + length),
			.frag_off = bpf_htons(0x4000), // don't fragment
			.ttl = 64,
			.protocol = protocol,
			.saddr = packet->key.destination.word[3],
			.daddr = packet->key.source.word[3],
		};

		ip.check = ~folded(bpf_csum_diff(NULL, 0, (void *)&ip, sizeof(ip), 0));
		return bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		struct ipv6hdr ip = {
			.version = 6,
			.payload_len = bpf_htons(length),
			.nexthdr = protocol,
			.hop_limit = 64,
		};

		__builtin_memcpy(&ip.saddr, &packet->key.destination, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &packet->key.source, sizeof(ip.daddr));
		return bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
}

// Send the answer that a packet was made into: into the pod, behind all that sees what goes to it, or on the way
// that the kernel has to the sender.
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	struct bpf_redir_neigh next = {};

	if (packet->hook == FROM_POD)
		return bpf_redirect_peer(skb->ifindex, 0);
	if (packet->hook != FROM_WIRE)
		return TC_ACT_SHOT;
	set_ends(&fib, &packet->key.destination, &packet->key.source);
	switch (bpf_fib_lookup(skb, &fib, sizeof(fib), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	default:
		return TC_ACT_SHOT;
	}
	next.nh_family = fib.family;
	__builtin_memcpy(next.ipv6_nh, fib.ipv6_dst, sizeof(next.ipv6_nh));
	return bpf_redirect_neigh(fib.ifindex, &next, sizeof(next), 0);
}

static __always_inline bool is_plain(const struct packet *packet)
{
	return !packet->fragment &&
	       packet->l4 == ETH_HLEN + (is_ipv4(&packet->key.source) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
}

// How long what follows the IP header is, by that header: a link may have padded the frame.
static __always_inline __u32 upper_length(struct __sk_buff *skb, const struct packet *packet)
{
	bool ipv4 = is_ipv4(&packet->key.source);
	__be16 length;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + (ipv4 ? offsetof(struct iphdr, tot_len) : offsetof(struct ipv6hdr, payload_len)),
			       &length, sizeof(length)))
		return 0;
	return bpf_ntohs(length) - (ipv4 ? sizeof(struct iphdr) : 0);
}

// A packet's bytes behind the header of TCP, of which an answer has none, that are left there rather than taken off.
#define MOST_PADDING (ETH_HLEN + sizeof(struct ipv6hdr))
#define MOST_AT_ONCE 0xfff // of bytes that the kernel takes out
#define MOST_TAKEN 4	   // times: enough for jumbo frames

// Make a packet that came out of a tunnel so short. The kernel does not cut the end of one that it has marked as
// encapsulated (skb->encapsulation), as one is whose sender's mark came along: by a wire that hands on the packet
// itself, as veths do. So bytes are taken out ahead of its IP header, which goes, too, as all is written anew. If that
// takes out the place from where the rest of a checksum was to be summed up, nobody does that any more
// (skb_postpull_rcsum); else it is a few bytes, which stay, as zeros: those change no sum, and who gets the packet
// takes them for the link's padding. Of several segments in one nothing is answered; one of them comes again alone.
static __always_inline int take_out(struct __sk_buff *skb, __u32 length)
{
	__u8 zeros[MOST_PADDING] = {};
	__u64 over = skb->len - length;

	asm volatile("" : "+r"(over)); // one register for what is compared and what is used
	if (skb->len < length || skb->gso_size)
		return -1;
	if (over <= MOST_PADDING)
		return over ? bpf_skb_store_bytes(skb, length, zeros, over, BPF_F_RECOMPUTE_CSUM) : 0;
	for (int times = 0; times < MOST_TAKEN && over; times++) {
		__u32 taken = over < MOST_AT_ONCE ? over : MOST_AT_ONCE;

		if (bpf_skb_adjust_room(skb, -(__s32)taken, BPF_ADJ_ROOM_MAC, 0))
			return -1;
		over -= taken;
	}
	return over ? -1 : 0;
}

// Answer what TCP sent with RST. Returns what becomes of the packet.
__noinline int reset_sender(struct __sk_buff *skb, const struct packet *packet)
{
	struct tcp_header tcp, was;
	__sum16 check, changed;
	__u32 sum;

	if (!packet || packet->key.protocol != IPPROTO_TCP || packet->tcp_flags & TCP_RST || !is_plain(packet) ||
	    packet->hook == TO_POD || bpf_skb_load_bytes(skb, packet->l4, &was, sizeof(was)))
		return TC_ACT_SHOT;
	tcp = (struct tcp_header){
		.source = packet->key.destination_port, // in the packet it may be a backend's already
		.destination = was.source,
		.length = sizeof(tcp) / 4 << 4,
		.flags = TCP_RST,
	};
	if (was.flags & TCP_ACK) {
		tcp.sequence = was.acknowledged;
	} else {
		tcp.flags |= TCP_ACK;
		tcp.acknowledged = bpf_htonl(bpf_ntohl(was.sequence) + upper_length(skb, packet) - packet->l4_length +
					     !!(was.flags & TCP_SYN) + !!(was.flags & TCP_FIN));
	}
	if (bpf_skb_change_tail(skb, packet->l4 + sizeof(tcp), 0) && take_out(skb, packet->l4 + sizeof(tcp)))
		return TC_ACT_SHOT;
	sum = pseudo_sum(packet, IPPROTO_TCP, sizeof(tcp));
	// Who sends last may be left the rest of the sum (CHECKSUM_PARTIAL), which nothing here tells but this: then
	// what is changed in the header changes nothing in the sum.
	if (bpf_l4_csum_replace(skb, packet->l4 + TCP_CHECK, 0, 1, 0) ||
	    bpf_skb_load_bytes(skb, packet->l4 + TCP_CHECK, &changed, sizeof(changed)))
		return TC_ACT_SHOT;
	check = changed == was.check ? sum : ~folded(bpf_csum_diff(NULL, 0, (void *)&tcp, sizeof(tcp), sum));
	tcp.check = check;
	if (bpf_skb_store_bytes(skb, packet->l4, &tcp, sizeof(tcp), BPF_F_RECOMPUTE_CSUM) ||
	    write_heads(skb, packet, IPPROTO_TCP, sizeof(tcp)))
		return TC_ACT_SHOT;
	count(RESETS_SENT);
	return send_back(skb, packet);
}

struct unreachable {
	__u8 type, code;
	__sum16 check;
	__be32 unused;
	__u8 quoted[sizeof(struct ipv6hdr) + QUOTED];
};

// Answer what is no TCP with ICMP's "port unreachable" (RFC 792, RFC 4443 section 3.1). Only pods hear it, of what they
// sent themselves, and it is hardly longer than that: so nobody has to ration it. Returns what becomes of the packet.
__noinline int tell_unreachable(struct __sk_buff *skb, const struct packet *packet)
{
	struct unreachable error = {};
	__u32 length, sum = 0;
	__u8 protocol;

	if (!packet || packet->hook != FROM_POD || !is_plain(packet))
		return TC_ACT_SHOT;
	if (is_ipv4(&packet->key.source)) {
		protocol = IPPROTO_ICMP;
		error.type = 3;
		error.code = 3;
		length = offsetof(struct unreachable, quoted) + sizeof(struct iphdr) + QUOTED;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, error.quoted, sizeof(struct iphdr) + QUOTED))
			return TC_ACT_SHOT;
	} else {
		protocol = IPPROTO_ICMPV6;
		error.type = 1;
		error.code = 4;
		length = sizeof(error);
		if (bpf_skb_load_bytes(skb, ETH_HLEN, error.quoted, sizeof(error.quoted)))
			return TC_ACT_SHOT;
		sum = pseudo_sum(packet, protocol, length);
	}
	error.check = ~folded(bpf_csum_diff(NULL, 0, (void *)&error, sizeof(error), sum)); // IPv4's rest is 0
	if (bpf_skb_change_tail(skb, packet->l4 + length, 0))
		return TC_ACT_SHOT;
	if (protocol == IPPROTO_ICMP ? bpf_skb_store_bytes(skb, packet->l4, &error,
							   offsetof(struct unreachable, quoted) + sizeof(struct iphdr) + QUOTED,
							   BPF_F_RECOMPUTE_CSUM)
				     : bpf_skb_store_bytes(skb, packet->l4, &error, sizeof(error), BPF_F_RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	if (write_heads(skb, packet, protocol, length))
		return TC_ACT_SHOT;
	count(UNREACHABLES_SENT);
	return send_back(skb, packet);
}

// Have the sender of a packet hear at once that nobody is there. Returns what becomes of the packet.
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *packet)
{
	return packet->key.protocol == IPPROTO_TCP ? reset_sender(skb, packet) : tell_unreachable(skb, packet);
}

// A connection that policy has cut: who goes on with it is told, of TCP. What only waits for its rules to be written
// is not over.
__noinline int cut(struct __sk_buff *skb, struct packet *packet, const struct flow *flow)
{
	if (!packet || !flow)
		return TC_ACT_SHOT;
	drop(skb, packet, flow, flow->reason);
	if (flow->reason != DENIED_EGRESS && flow->reason != DENIED_INGRESS)
		return TC_ACT_SHOT;
	if (packet->led) { // who called a Service knows of no backend
		if (packet->led & FLOW_TO_ITSELF)
			packet->key.source = packet->key.destination;
		packet->key.destination = packet->service;
		packet->key.destination_port = packet->service_port;
	}
	return reset_sender(skb, packet);
}
