// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The verdict on a connection, in the direction of who called.
#pragma once

static __noinline int drop(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow, __u8 reason)
{
	if (!packet)
		return TC_ACT_SHOT;
	count(reason < N_REASONS ? reason : MALFORMED);
	tell(skb, packet, flow, PACKET_DROPPED, reason);
	return TC_ACT_SHOT;
}

// The numbers that a verdict hangs on.
struct grounds {
	__u32 set[2]; // egress rules of who called, ingress rules of who is called
	__u32 generation[2];
	__u32 identity[2]; // of destination, source
};

static __always_inline __u32 generation_of(__u32 set)
{
	const struct rule_set *found;

	if (!set)
		return 0;
	found = bpf_map_lookup_elem(&rule_sets, &set);
	return found && found->generation ? found->generation : RULES_NOT_THERE;
}

static __always_inline void find_grounds(struct grounds *grounds, const struct flow_key *call)
{
	const struct endpoint *source = endpoint_at(&call->source), *destination = endpoint_at(&call->destination);

	grounds->set[0] = source ? source->egress_rules : 0;
	grounds->set[1] = destination ? destination->ingress_rules : 0;
	grounds->generation[0] = generation_of(grounds->set[0]);
	grounds->generation[1] = generation_of(grounds->set[1]);
	grounds->identity[0] = identity_of(&call->destination);
	grounds->identity[1] = identity_of(&call->source);
}

// Judge by these grounds. `flow` gets them, the rules and the reason.
static __always_inline void judge(struct flow *flow, const struct grounds *grounds, const struct flow_key *call)
{
	__u16 port = bpf_ntohs(call->destination_port);
	struct opinion opinion = {};

	__builtin_memcpy(flow->identity, grounds->identity, sizeof(flow->identity));
	flow->generation[1] = grounds->generation[1];
	flow->rule[1] = RULE_NONE;

	ask(&opinion, grounds->set[0], grounds->identity[0], call->protocol, port);
	flow->generation[0] = opinion.generation;
	flow->rule[0] = opinion.rule;
	flow->reason = opinion.reason;
	if (flow->reason)
		return;
	if (flow->flags & FLOW_FROM_NODE) {
		flow->rule[1] = RULE_FROM_NODE;
		return;
	}
	ask(&opinion, grounds->set[1], grounds->identity[1], call->protocol, port);
	flow->generation[1] = opinion.generation;
	flow->rule[1] = opinion.rule;
	flow->reason = opinion.reason == DENIED_EGRESS ? DENIED_INGRESS : opinion.reason;
}

// Whether these are the packets of a pod that calls itself, in its gateway's name; not the answers.
static __always_inline bool is_call_to_itself(const struct flow *flow)
{
	return (flow->flags & (FLOW_TO_ITSELF | FLOW_REPLY)) == FLOW_TO_ITSELF;
}

// Something changed since a flow was judged. False if its end on this node is no longer what it was.
static __noinline bool judge_again(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	const struct endpoint *near;
	struct grounds grounds;
	struct flow_key call;
	__u8 before;

	if (!packet || !flow)
		return false;
	near = endpoint_at(packet->hook == FROM_POD && !is_call_to_itself(flow) ? &packet->key.source : &packet->key.destination);
	if (packet->hook == FROM_POD ? !near || near->ifindex != skb->ifindex : !near)
		return false;
	call = flow->flags & FLOW_REPLY ? reversed(&packet->key) : packet->key;
	if (flow->flags & FLOW_TO_ITSELF)
		call.source = call.destination;
	find_grounds(&grounds, &call);
	if (grounds.generation[0] != flow->generation[0] || grounds.generation[1] != flow->generation[1] ||
	    grounds.identity[0] != flow->identity[0] || grounds.identity[1] != flow->identity[1]) {
		before = flow->reason;
		judge(flow, &grounds, &call);
		count(FLOWS_JUDGED_AGAIN);
		if (before != flow->reason)
			tell(skb, packet, flow, FLOW_REJUDGED, flow->reason);
	}
	flow->epoch = packet->epoch;
	return true;
}
