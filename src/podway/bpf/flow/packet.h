// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What a packet is: its addresses, protocol and ports, behind IPv4 options and IPv6 extension headers.
#pragma once

// One direction of a connection. Ports are in network order. Of ICMP requests and their replies the identifier is
// the port of who asks and the request's type and code that of who answers, so that both belong together; of other
// ICMP messages type and code are the destination port.
struct flow_key {
	struct address source, destination;
	__be16 source_port, destination_port;
	__u8 protocol;
	__u8 unused[3]; // 0
};

static __always_inline struct flow_key reversed(const struct flow_key *key)
{
	return (struct flow_key){
		.source = key->destination,
		.destination = key->source,
		.source_port = key->destination_port,
		.destination_port = key->source_port,
		.protocol = key->protocol,
	};
}

enum fragment { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

enum message {
	DATA,
	REPLY,	      // of ICMP: there is a request, or it is nothing
	ICMP_ERROR,   // about a packet that follows
	NEIGHBOURHOOD, // neighbour discovery and multicast listeners: of the link alone
	ROUTER,	      // a redirect or a router's advertisement
};

struct packet {
	struct flow_key key;
	__u64 now;	   // CLOCK_MONOTONIC, ns
	__u32 epoch;	   // before anything was asked: what changes meanwhile counts it up again
	__u8 hook;	   // enum hook
	__u32 fragment_id;
	__u16 l4;	   // where the upper header begins
	__u16 l4_length;   // of TCP's header; else 8
	__u16 length;	   // of all of it, as IP says; 0: IP has no number that large
	__u32 sequence, acknowledged; // of TCP
	__u8 fragment;	   // enum fragment
	__u8 message;	   // enum message
	__u8 tcp_flags;
	__u8 hops;	   // TTL, hop limit
	__sum16 ipv4_check;
	__u8 needs_stack;  // IPv4 options, IPv6 hop-by-hop options
	__u8 led;	   // FLOW_SERVICE, FLOW_TO_ITSELF: what its flow is, as it was sent to a Service
	__u8 chosen;	   // ... whose backend was chosen for it, and is not remembered yet
	__be16 service_port;
	struct address service; // which
};

// The packet that this processor is at: programs do not interrupt each other. On no stack, where the verifier would
// follow what is known of each field through all that comes after.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

enum { THIS_PACKET, QUOTED_PACKET };

static __always_inline struct packet *begin_packet(__u32 which)
{
	struct packet *packet = bpf_map_lookup_elem(&packets, &which);

	if (packet)
		__builtin_memset(packet, 0, sizeof(*packet));
	return packet;
}

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define IP_OFFSET 0x1fff
#define IP_MORE 0x2000
#define MOST_EXTENSION_HEADERS 8

// Read the IPv6 headers between `offset` and the upper one. Returns a reason.
static __always_inline int parse_extensions(struct __sk_buff *skb, struct packet *packet, __u32 offset, __u8 next)
{
	for (int i = 0; i < MOST_EXTENSION_HEADERS; i++) {
		struct {
			__u8 next, length;
			__be16 detail; // routing: type and segments left; fragment: offset and flags
			__be32 id;
		} header;

		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			packet->key.protocol = next;
			packet->l4 = offset;
			return KEPT;
		}
		if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)))
			return MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 where = bpf_ntohs(header.detail);

			packet->fragment_id = header.id;
			if (where >> 3) { // what follows is no header
				packet->fragment = LATER_FRAGMENT;
				packet->key.protocol = header.next;
				packet->l4 = offset + 8;
				return KEPT;
			}
			if (where & 1)
				packet->fragment = FIRST_FRAGMENT;
			offset += 8;
		} else if (next == IPPROTO_AH) {
			offset += (header.length + 2) * 4;
		} else {
			if (next == IPPROTO_HOPOPTS)
				packet->needs_stack = 1;
			// With segments left it goes elsewhere than its destination says (RFC 5095).
			if (next == IPPROTO_ROUTING && bpf_ntohs(header.detail) & 0xff)
				return EXTENSION_HEADERS;
			offset += (header.length + 1) * 8;
		}
		next = header.next;
	}
	return EXTENSION_HEADERS;
}

// Read the IP header at `offset`. Returns a reason.
static __always_inline int parse_ip(struct __sk_buff *skb, struct packet *packet, __u32 offset, bool ipv6)
{
	if (ipv6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
			return MALFORMED;
		__builtin_memcpy(&packet->key.source, &ip.saddr, sizeof(ip.saddr));
		__builtin_memcpy(&packet->key.destination, &ip.daddr, sizeof(ip.daddr));
		// What is written as a mapped address is IPv4 to all our maps, and on no wire (RFC 4291).
		if (ip.version != 6 || is_ipv4(&packet->key.source) || is_ipv4(&packet->key.destination))
			return MALFORMED;
		packet->hops = ip.hop_limit;
		packet->length = ip.payload_len ? bpf_ntohs(ip.payload_len) + sizeof(ip) : 0;
		return parse_extensions(skb, packet, offset + sizeof(ip), ip.nexthdr);
	} else {
		struct iphdr ip;
		__u16 where;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
			return MALFORMED;
		packet->key.source = mapped(ip.saddr);
		packet->key.destination = mapped(ip.daddr);
		if (ip.version != 4 || ip.ihl < 5)
			return MALFORMED;
		packet->key.protocol = ip.protocol;
		packet->hops = ip.ttl;
		packet->length = bpf_ntohs(ip.tot_len);
		packet->ipv4_check = ip.check;
		packet->l4 = offset + ip.ihl * 4;
		packet->needs_stack = ip.ihl > 5;
		where = bpf_ntohs(ip.frag_off);
		packet->fragment_id = ip.id;
		if (where & IP_OFFSET)
			packet->fragment = LATER_FRAGMENT;
		else if (where & IP_MORE)
			packet->fragment = FIRST_FRAGMENT;
		// One that begins within TCP's header would write over its flags (RFC 3128).
		if ((where & IP_OFFSET) == 1 && ip.protocol == IPPROTO_TCP)
			return MALFORMED;
		return KEPT;
	}
}

struct icmp {
	__u8 type, code;
	__be16 checksum;
	__be16 id, sequence;
};

static __always_inline void parse_icmp(struct packet *packet, const struct icmp *icmp)
{
	struct flow_key *key = &packet->key;
	__u8 request = 0;

	key->destination_port = bpf_htons(icmp->type << 8 | icmp->code);
	if (key->protocol == IPPROTO_ICMP) {
		switch (icmp->type) {
		case 8: case 13: // echo, timestamp
			key->source_port = icmp->id;
			return;
		case 0: case 14:
			request = icmp->type ? 13 : 8;
			break;
		case 3: case 4: case 11: case 12:
			packet->message = ICMP_ERROR;
			return;
		case 5: case 9:
			packet->message = ROUTER;
			return;
		default:
			return;
		}
	} else {
		switch (icmp->type) {
		case 128:
			key->source_port = icmp->id;
			return;
		case 129:
			request = 128;
			break;
		case 1 ... 4:
			packet->message = ICMP_ERROR;
			return;
		case 134: case 137:
			packet->message = ROUTER;
			return;
		case 130 ... 133: case 135: case 136: case 143:
			packet->message = NEIGHBOURHOOD;
			return;
		default:
			return;
		}
	}
	packet->message = REPLY;
	key->source_port = bpf_htons(request << 8 | icmp->code);
	key->destination_port = icmp->id;
}

// Read the upper header of what is no later fragment. `quoted`: only its first 8 bytes are there for sure.
static __always_inline int parse_upper(struct __sk_buff *skb, struct packet *packet, bool quoted)
{
	struct flow_key *key = &packet->key;
	struct {
		__be16 source, destination;
		__be32 sequence;
		__be32 acknowledged;
		__u8 length, flags;
	} header;

	packet->l4_length = 8;
	switch (key->protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, packet->l4, &header, quoted ? 8 : 14))
			return MALFORMED;
		if (!quoted) {
			packet->tcp_flags = header.flags;
			packet->sequence = bpf_ntohl(header.sequence);
			packet->acknowledged = bpf_ntohl(header.acknowledged);
			packet->l4_length = (header.length >> 4) * 4;
		}
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
		if (bpf_skb_load_bytes(skb, packet->l4, &header, 8))
			return MALFORMED;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		// Each belongs to its own family.
		if ((key->protocol == IPPROTO_ICMP) != is_ipv4(&key->source))
			return KEPT;
		if (bpf_skb_load_bytes(skb, packet->l4, &header, 8))
			return MALFORMED;
		parse_icmp(packet, (void *)&header);
		return KEPT;
	default:
		return KEPT;
	}
	key->source_port = header.source;
	key->destination_port = header.destination;
	return KEPT;
}
