// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The first packet of a connection, and those that belong to none.
#pragma once

// Whether a flow's packets come by this device: else their source is forged, or the address is another pod's now.
static __always_inline bool belongs(const struct __sk_buff *skb, const struct packet *packet, const struct flow *flow)
{
	if (packet->hook == TO_POD)
		return true;
	return flow->from == (packet->hook == FROM_POD ? skb->ifindex : 0);
}

static __always_inline int go_on(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	if (flow->flags & FLOW_TO_ITSELF)
		return turn_back(skb, packet, flow);
	// What the stack carries gets the Service's name here: as it came by a pod's link it would be forged.
	if (packet->hook == TO_POD) {
		if (put_service(skb, packet, flow))
			return TC_ACT_SHOT;
		return may_teach(skb, packet, flow) && hand_over(skb, packet, flow) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	if (may_teach(skb, packet, flow)) // on its way into the pod, where it is the packet that the pod gets
		return leave_to_stack(skb);
	// All fragments of a packet go one way: the stack may put them together, and one of them may be too long for ours.
	if (!(flow->flags & FLOW_STRAIGHT) || packet->needs_stack || packet->fragment || packet->hops <= 1)
		return leave_to_stack(skb);
	return carry(skb, packet, flow);
}

// Whether this node's own processes or kernel sent it, rather than forwarded it: it came in by no device, and a
// socket sent it. The first alone does not say so of fragments that IPv6 makes again (kernel: ip6_copy_metadata).
static __always_inline bool is_from_node(const struct __sk_buff *skb, const struct packet *packet)
{
	return packet->hook == TO_POD && !skb->ingress_ifindex && skb->sk;
}

static __always_inline bool is_multicast(const struct address *address)
{
	if (is_ipv4(address))
		return (bpf_ntohl(address->word[3]) >> 28) == 14 || address->word[3] == 0xffffffff;
	return (bpf_ntohl(address->word[0]) >> 24) == 0xff;
}

// Whether a packet's end on this node is what it says. KEPT, a reason, or NOT_OURS: no pod of this node is meant.
#define NOT_OURS (-1)

static __always_inline int check_ends(const struct __sk_buff *skb, const struct packet *packet)
{
	const struct flow_key *key = &packet->key;
	const struct endpoint *endpoint;

	if (packet->hook == FROM_POD) {
		endpoint = endpoint_at(&key->source);
		return endpoint && endpoint->ifindex == skb->ifindex ? KEPT : NOT_OWN_SOURCE;
	}
	endpoint = endpoint_at(&key->destination);
	if (packet->hook == FROM_WIRE) {
		if (!endpoint)
			return NOT_OURS;
		return endpoint_at(&key->source) ? POD_SOURCE_FROM_WIRE : KEPT;
	}
	if (endpoint && endpoint->ifindex == skb->ifindex)
		return KEPT;
	return is_from_node(skb, packet) || is_multicast(&key->destination) ? NOT_OURS : POLICY_NOT_WRITTEN;
}

// A packet that says nothing of whose it is.
__noinline int unreadable(struct __sk_buff *skb, const struct packet *packet, __u8 reason)
{
	if (!packet)
		return TC_ACT_SHOT;
	// On the wire most are not for pods, and none of our business.
	if (packet->hook == FROM_WIRE && !endpoint_at(&packet->key.destination))
		return TC_ACT_UNSPEC;
	return drop(skb, packet, NULL, reason);
}

static __always_inline bool is_of_the_link(const struct address *address)
{
	return is_multicast(address) || (bpf_ntohl(address->word[0]) & 0xffc00000) == 0xfe800000;
}

// Neighbour discovery and the like, which no policy is about: so it must not leave the link.
__noinline int of_the_link(struct __sk_buff *skb, const struct packet *packet)
{
	const struct endpoint *destination;
	bool sound;

	if (!packet)
		return TC_ACT_SHOT;
	destination = endpoint_at(&packet->key.destination);
	if (packet->hook == FROM_WIRE && !destination)
		return TC_ACT_UNSPEC;
	// Multicast listeners say 1, and all others 255 (RFC 3810, RFC 4861).
	sound = packet->message == NEIGHBOURHOOD && (packet->hops == 255 || packet->hops == 1) &&
		(is_of_the_link(&packet->key.destination) || (destination && destination->flags & ENDPOINT_BRIDGED));
	if (is_from_node(skb, packet) || (sound && packet->hook != FROM_WIRE))
		return TC_ACT_UNSPEC;
	return drop(skb, packet, NULL, LINK_MESSAGE);
}

// Whether the quota of who is charged has room for one more.
static __always_inline __u8 charge(struct flow *flow, const struct state *state, const struct packet *packet)
{
	struct quota *quota = quota_of(flow);

	if (!quota)
		return TABLE_FULL;
	if (packet->key.protocol == IPPROTO_TCP) {
		if ((__s64)quota->open >= (__s64)state->established)
			return QUOTA_ESTABLISHED;
	} else if ((__s64)(quota->replied_until - packet->now) >= (__s64)(QUOTA_WINDOW - QUOTA_WINDOW / (state->established ?: 1))) {
		return QUOTA_ESTABLISHED;
	}
	return take(&quota->half_open_until, state->half_open, packet->now) ? KEPT : QUOTA_HALF_OPEN;
}

// What stood there before: a connection that ended in silence. Nobody went through the table since.
__noinline int forget(struct __sk_buff *skb, const struct packet *packet)
{
	struct flow_key back;
	struct flow *old;
	struct quota *quota;

	if (!packet)
		return 0;
	old = bpf_map_lookup_elem(&flows, &packet->key);
	if (!old || old->state >= CLOSED)
		return 0;
	if (old->owner && is_open(packet->key.protocol, old->state)) {
		quota = quota_of(old);
		if (quota)
			__sync_fetch_and_add(&quota->open, -1ULL);
	}
	back = reversed(&packet->key);
	tell_both(skb, packet, old, bpf_map_lookup_elem(&flows, &back), FLOW_END, KEPT);
	old->state = CLOSED;
	return 0;
}

// Make the entry of one direction anew from the other's: the table may have given up either alone, as the one that
// was not used for longer. Returns whether there is a connection that the packet belongs to.
static __always_inline bool restore(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	struct flow_key back = reversed(&packet->key);
	struct flow *other = bpf_map_lookup_elem(&flows, &back);

	if (!other || !lives(&back, other, packet->now) || begins_anew(packet, other) ||
	    (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return false;
	*flow = *other;
	flow->flags = (other->flags ^ FLOW_REPLY) & ~FLOW_SENT_FIN;
	flow->packets = flow->bytes = 0;
	flow->way_seen = 0;
	flow->way = WAY_STACK;
	time_anew(flow);
	flow->from = packet->hook == FROM_POD ? skb->ifindex : packet->hook == FROM_WIRE || !endpoint_at(&packet->key.source) ? 0 : ~0U;
	flow->counted = packet->hook;
	return !bpf_map_update_elem(&flows, &packet->key, flow, BPF_NOEXIST);
}

#define LEARNED (-2)  // there is a flow now, and the packet goes on
#define RESTORED (-3) // there is one again, of which nothing was asked yet

__noinline int learn(struct __sk_buff *skb, const struct packet *packet)
{
	const struct endpoint *source, *destination;
	struct grounds grounds;
	struct flow *flow = begin_flow();
	const struct state *state;
	struct flow_key back, call;
	bool straight, reset, answers;
	__u32 link = skb->ifindex;
	int reason;

	asm volatile("" : "+r"(link)); // read here: the verifier takes no pointer to one of two places
	state = the_state();
	if (!packet || !state || !flow)
		return TC_ACT_SHOT;
	if (packet->led) { // by a call that is remembered, perhaps, longer than its pod is there
		source = endpoint_at(packet->led & FLOW_TO_ITSELF ? &packet->key.destination : &packet->key.source);
		reason = source && source->ifindex == skb->ifindex ? KEPT : NOT_OWN_SOURCE;
	} else {
		reason = check_ends(skb, packet);
	}
	if (reason == NOT_OURS)
		return TC_ACT_UNSPEC;
	if (!reason && restore(skb, packet, flow))
		return RESTORED;
	answers = !packet->led && answers_call_of_before(packet);
	if (!reason && packet->hook == FROM_WIRE && (answers || is_for_caller(packet)))
		return TC_ACT_UNSPEC; // podway_to_pod sees it
	if (!reason && !answers && (packet->message == REPLY ||
				    (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == (TCP_SYN | TCP_ACK)))
		reason = REPLY_WITHOUT_REQUEST;
	if (reason)
		return drop(skb, packet, NULL, reason);

	flow->epoch = packet->epoch;
	call = answers ? reversed(&packet->key) : packet->key;
	if (packet->led) {
		flow->flags |= packet->led;
		flow->service = packet->service;
		flow->service_port = packet->service_port;
		if (packet->led & FLOW_TO_ITSELF)
			call.source = call.destination;
	}
	if (answers)
		flow->flags |= only_ports_tell(packet) ? FLOW_REPLY | FLOW_OF_BEFORE : FLOW_REPLY;
	if (answers ? answers_node(skb, packet) : is_from_node(skb, packet))
		flow->flags |= FLOW_FROM_NODE;
	find_grounds(&grounds, &call);
	judge(flow, &grounds, &call);
	if (flow->reason)
		return drop(skb, packet, flow, flow->reason);
	__builtin_memcpy(flow->audited, grounds.audited, sizeof(flow->audited));

	source = endpoint_at(packet->led & FLOW_TO_ITSELF ? &packet->key.destination : &packet->key.source);
	destination = endpoint_at(&packet->key.destination);
	reset = packet->tcp_flags & TCP_RST; // of a connection that is not known: it begins none
	straight = packet->hook != TO_POD && (source || is_pod(&packet->key.source)) &&
		   (destination || is_pod(&packet->key.destination)) &&
		   !(source && source->flags & ENDPOINT_BRIDGED) && !(destination && destination->flags & ENDPOINT_BRIDGED);
	if (straight)
		flow->flags |= FLOW_STRAIGHT;
	if (!(flow->flags & FLOW_FROM_NODE) && (packet->hook == FROM_POD || destination)) {
		flow->owner = packet->hook == FROM_POD ? link : destination->ifindex;
		if ((packet->hook == FROM_POD) == answers)
			flow->flags |= FLOW_INCOMING;
	}
	if (reset)
		return leave_to_stack(skb);
	forget(skb, packet);
	if (flow->owner) {
		reason = charge(flow, state, packet);
		if (reason)
			return drop(skb, packet, flow, reason);
	}
	if (!straight)
		note_caller(&call); // which turns no table over that others share, unless the quota has room
	flow->made = flow->seen = packet->now;

	// The way back first: nobody can answer before the other entry is there.
	back = reversed(&packet->key);
	flow->flags ^= FLOW_REPLY;
	flow->from = destination ? destination->ifindex : 0;
	flow->counted = destination ? FROM_POD : straight ? FROM_WIRE : TO_POD;
	time_first_back(skb, packet, flow);
	if (bpf_map_update_elem(&flows, &back, flow, BPF_ANY))
		return drop(skb, packet, flow, TABLE_FULL);
	time_first(flow);
	flow->flags ^= FLOW_REPLY;
	// One that the stack translated comes by no pod's link and from no wire.
	flow->from = packet->hook == FROM_POD ? skb->ifindex : packet->hook == FROM_WIRE || !source ? 0 : ~0U;
	flow->counted = packet->hook;
	flow->packets = 1;
	flow->bytes = skb->len - ETH_HLEN;
	if (bpf_map_update_elem(&flows, &packet->key, flow, BPF_ANY))
		return drop(skb, packet, flow, TABLE_FULL);
	count(FLOWS_MADE);
	tell(skb, packet, flow, FLOW_NEW, KEPT);
	if (is_to_be_audited(flow, &grounds))
		audit(skb, packet, flow, &grounds, &call);
	return LEARNED;
}
