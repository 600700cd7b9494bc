// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The way of a flow's packets past the stack. It is the kernel's routing that decides, asked once a second at most
// for each flow, or when the agent had all ways looked up anew.
#pragma once

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

// How long the packet is, or each of its segments, at the IP layer.
static __always_inline __u32 ip_length(const struct __sk_buff *skb, const struct packet *packet)
{
	if (skb->gso_size)
		return packet->l4 - ETH_HLEN + packet->l4_length + skb->gso_size;
	return skb->len - ETH_HLEN;
}

// No path is narrower for IP packets inside an overlay: route/min_pmtu (ip-sysctl.rst) less the largest outer header.
#define ALWAYS_FITS (552 - 70)

static __always_inline bool is_link_local(const struct bpf_fib_lookup *fib)
{
	return fib->family == AF_INET6 && (fib->ipv6_dst[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool is_limited(const struct endpoint *endpoint)
{
	return endpoint && endpoint->flags & ENDPOINT_LIMITED;
}

// Have a question about the way ask for one from an address to another.
static __always_inline void set_ends(struct bpf_fib_lookup *fib, const struct address *from, const struct address *to)
{
	if (is_ipv4(to)) {
		fib->family = AF_INET;
		fib->ipv4_src = from->word[3];
		fib->ipv4_dst = to->word[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, from, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, to, sizeof(fib->ipv6_dst));
	}
}

// Ask the kernel for the way; `next` becomes the neighbour. What it does not forward, or cannot yet, is the stack's.
static __always_inline void look_up_way(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
					const struct state *state, struct bpf_redir_neigh *next)
{
	const struct flow_key *key = &packet->key;
	const struct endpoint *endpoint = endpoint_at(&key->destination);
	struct bpf_fib_lookup fib = {
		.l4_protocol = key->protocol,
		.sport = key->source_port,
		.dport = key->destination_port,
		.tot_len = ip_length(skb, packet), // not 0, so it becomes the route's MTU (kernel 5.12)
		.ifindex = skb->ifindex,
	};
	long said;

	if (is_limited(endpoint) || is_limited(endpoint_at(&key->source))) {
		flow->way_generation = *(volatile const __u32 *)&state->way_generation;
		flow->way_seen = packet->now;
		flow->mtu = ~0;
		*(volatile __u8 *)&flow->way = WAY_STACK;
		return;
	}
	set_ends(&fib, &key->source, &key->destination);
	count(WAYS_RENEWED);
	flow->way_generation = *(volatile const __u32 *)&state->way_generation;
	said = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	// Another processor may be using it: it sees the former way, the stack, or the new one.
	*(volatile __u8 *)&flow->way = WAY_STACK;
	if (said == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		flow->way_seen = 0; // that is this packet's way alone
		return;
	}
	// Without a neighbour the stack asks for one: so the next packet looks again.
	flow->way_seen = said == BPF_FIB_LKUP_RET_NO_NEIGH ? 0 : packet->now;
	if (said != BPF_FIB_LKUP_RET_SUCCESS || fib.ifindex == skb->ifindex)
		return;
	__builtin_memcpy(flow->hardware, fib.dmac, 6);
	__builtin_memcpy(flow->hardware + 6, fib.smac, 6);
	flow->ifindex = fib.ifindex;
	flow->mtu = fib.tot_len;
	flow->overlay = is_link_local(&fib);
	next->nh_family = fib.family;
	__builtin_memcpy(next->ipv6_nh, fib.ipv6_dst, sizeof(next->ipv6_nh));
	*(volatile __u8 *)&flow->way = endpoint && endpoint->ifindex == fib.ifindex ? WAY_PEER : WAY_WIRE;
}

// Write the addresses of the link, and what the TTL or hop limit becomes.
static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *packet, const __u8 *hardware)
{
	if (is_ipv4(&packet->key.destination)) {
		struct {
			__u8 ttl, protocol;
			__sum16 check;
		} now = { packet->hops - 1, packet->key.protocol, 0 };
		__u32 sum = packet->ipv4_check + bpf_htons(0x0100); // RFC 1141

		now.check = sum + (sum >= 0xffff);
		if (bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct iphdr, ttl), &now, sizeof(now), 0))
			return -1;
	} else {
		__u8 hops = packet->hops - 1;

		if (bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &hops, sizeof(hops),
					BPF_F_RECOMPUTE_CSUM))
			return -1;
	}
	return bpf_skb_store_bytes(skb, 0, hardware, 12, 0);
}

// Leave a packet to the stack, marked as one that was counted: podway_to_pod may see it again. Whatever another
// program does to the mark, only counters depend on it.
#define COUNTED 0x7077

static __always_inline int leave_to_stack(struct __sk_buff *skb)
{
	skb->tc_index = COUNTED;
	count(TO_STACK);
	return TC_ACT_UNSPEC;
}

__noinline int carry(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	struct bpf_redir_neigh next = {};
	const struct state *state;
	__u32 length;
	bool fresh, may_not_fit;

	if (!packet || !flow)
		return TC_ACT_SHOT;
	state = the_state();
	if (!state)
		return TC_ACT_SHOT;
	length = ip_length(skb, packet);
	// Through an overlay what is long has a route with it, by which the overlay's device tells of a path that is
	// narrower than the devices (skb_tunnel_check_pmtu); and asks each time, so that the next one hears of it.
	may_not_fit = flow->overlay && length > ALWAYS_FITS;
	fresh = may_not_fit || flow->way_generation != state->way_generation ||
		packet->now - flow->way_seen > SECOND || length > flow->mtu;
	if (fresh)
		look_up_way(skb, packet, flow, state, &next);
	if (flow->way == WAY_STACK || length > flow->mtu)
		return leave_to_stack(skb);
	if (rewrite(skb, packet, flow->hardware) || put_service(skb, packet, flow))
		return TC_ACT_SHOT;
	if (flow->way == WAY_PEER) {
		count(CARRIED_PEER);
		return bpf_redirect_peer(flow->ifindex, 0);
	}
	count(CARRIED_WIRE);
	if (may_not_fit)
		return bpf_redirect_neigh(flow->ifindex, NULL, 0, 0);
	// Through the neighbour now and then, so that the kernel goes on proving that it is there.
	if (fresh)
		return bpf_redirect_neigh(flow->ifindex, &next, sizeof(next), 0);
	return bpf_redirect(flow->ifindex, 0);
}

// The way of what a pod sends to itself by a Service: back by its link, in its gateway's name; and of its answers.
__noinline int turn_back(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	__u8 towards[12];

	if (!packet || !flow || packet->hook != FROM_POD || packet->message > REPLY)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, 6, towards, 6) || bpf_skb_load_bytes(skb, 0, towards + 6, 6) ||
	    rewrite(skb, packet, towards))
		return TC_ACT_SHOT;
	if (flow->flags & FLOW_REPLY && (put_end(skb, packet, &packet->key.source, packet->key.destination_port, false) ||
					 put_service(skb, packet, flow)))
		return TC_ACT_SHOT;
	count(CARRIED_PEER);
	return bpf_redirect_peer(skb->ifindex, 0);
}
