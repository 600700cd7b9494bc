// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The verdict on a connection, in the direction of who called.
#pragma once

__noinline int drop(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow, __u8 reason)
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
	__u32 audit[2]; // sets by which is only told what they would deny
	__u32 audited[2]; // their generations
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
	grounds->audit[0] = source ? source->egress_audit : 0;
	grounds->audit[1] = destination ? destination->ingress_audit : 0;
	grounds->audited[0] = generation_of(grounds->audit[0]);
	grounds->audited[1] = generation_of(grounds->audit[1]);
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

// Tell of a flow that may be what policies that only report would deny. `flow` is no entry of the table: it gets their
// rules. A set that is not written says nothing here.
__noinline int audit(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
		     const struct grounds *grounds, const struct flow_key *call)
{
	struct opinion opinion = {};
	__u8 reason = KEPT;
	__u8 protocol;
	__u16 port;

	if (!packet || !flow || !grounds || !call)
		return 0;
	protocol = call->protocol;
	port = bpf_ntohs(call->destination_port);
	ask(&opinion, grounds->audit[0], grounds->identity[0], protocol, port);
	flow->rule[0] = opinion.rule;
	if (opinion.reason == DENIED_EGRESS)
		reason = DENIED_EGRESS;
	opinion.rule = RULE_NONE;
	opinion.reason = KEPT;
	if (!(flow->flags & FLOW_FROM_NODE))
		ask(&opinion, grounds->audit[1], grounds->identity[1], protocol, port);
	flow->rule[1] = opinion.rule;
	if (!reason && opinion.reason == DENIED_EGRESS)
		reason = DENIED_INGRESS;
	if (reason)
		tell(skb, packet, flow, FLOW_AUDITED, reason);
	return 0;
}

static __always_inline bool is_to_be_audited(const struct flow *flow, const struct grounds *grounds)
{
	return (grounds->audit[0] || grounds->audit[1]) && !flow->reason;
}

// Whether these are the packets of a pod that calls itself, in its gateway's name; not the answers.
static __always_inline bool is_call_to_itself(const struct flow *flow)
{
	return (flow->flags & (FLOW_TO_ITSELF | FLOW_REPLY)) == FLOW_TO_ITSELF;
}

// Something changed since a flow was judged. False if its end on this node is no longer what it was.
__noinline bool judge_again(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	const struct endpoint *near;
	struct grounds grounds;
	struct flow_key call;
	struct flow *copy;
	bool anew = false;
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
		anew = true;
	}
	if (is_to_be_audited(flow, &grounds) && (anew || grounds.audited[0] != flow->audited[0] ||
						 grounds.audited[1] != flow->audited[1])) {
		copy = begin_flow();
		if (copy) {
			*copy = *flow;
			audit(skb, packet, copy, &grounds, &call);
		}
	}
	__builtin_memcpy(flow->audited, grounds.audited, sizeof(flow->audited));
	flow->epoch = packet->epoch;
	return true;
}
