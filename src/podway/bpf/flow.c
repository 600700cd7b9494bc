// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The flow engine: judges each connection of this node's pods once, and carries its packets straight.
//
//   podway_from_pod   ingress of a pod's host link
//   podway_from_wire  ingress of the uplink, podway-vxlan and podway-ipip
//   podway_to_pod     egress of a pod's host link: what comes from the node, or by its stack
//
// docs/datapath.md tells what becomes of which packet, and why it is built so. Each header is one concern.
//
// Functions that are not inlined are global, not static: the verifier looks at a global one once, with whatever
// arguments, and at a static one at each call and for all that is known there, which takes it ten times as long.

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flow/address.h"
#include "flow/counters.h"
#include "flow/state.h"
#include "flow/policy.h"
#include "flow/packet.h"
#include "flow/fragment.h"
#include "flow/flow.h"
#include "flow/quota.h"
#include "flow/ring.h"
#include "flow/event.h"
#include "flow/translate.h"
#include "flow/way.h"
#include "flow/judge.h"
#include "flow/reject.h"
#include "flow/timing.h"
#include "flow/track.h"
#include "flow/under_way.h"
#include "flow/names.h"
#include "flow/translated.h"
#include "flow/learn.h"
#include "flow/service.h"
#include "flow/related.h"

static __always_inline int handle(struct __sk_buff *skb, enum hook hook)
{
	const struct state *state = current_state();
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	struct packet *packet;
	struct flow *flow;
	int reason, action;

	// A tagged packet belongs to a VLAN device above this one.
	if (!state || skb->vlan_present || (!ipv6 && skb->protocol != bpf_htons(ETH_P_IP)))
		return TC_ACT_UNSPEC;
	packet = begin_packet(THIS_PACKET);
	if (!packet)
		return TC_ACT_SHOT;
	packet->hook = hook;
	packet->now = bpf_ktime_get_ns();
	packet->epoch = *(volatile const __u32 *)&state->epoch;
	reason = parse_ip(skb, packet, ETH_HLEN, ipv6);
	if (!reason && packet->fragment != LATER_FRAGMENT)
		reason = parse_upper(skb, packet, false);
	if (!reason && packet->fragment) { // whose ends are sound: no ports are remembered in another's name
		reason = check_ends(skb, packet);
		if (reason == NOT_OURS)
			return TC_ACT_UNSPEC;
		if (!reason)
			reason = reassociate(packet);
		if (reason == FRAGMENT_WITHOUT_FIRST && is_about_before(packet))
			return leave_to_stack(skb);
	}
	if (reason)
		return unreadable(skb, packet, reason);
	if (packet->message > REPLY)
		return packet->message == ICMP_ERROR ? related(skb, packet) : of_the_link(skb, packet);

	flow = bpf_map_lookup_elem(&flows, &packet->key);
	if (hook == FROM_POD && packet->message == DATA && may_be_led(packet, flow)) {
		action = lead(skb, packet, flow);
		if (action == LED)
			flow = bpf_map_lookup_elem(&flows, &packet->key);
		else if (action != NO_SERVICE)
			return action;
	}
	if (!flow || !belongs(skb, packet, flow) || !lives(&packet->key, flow, packet->now) || begins_anew(packet, flow))
		goto new;
	if (flow->epoch != packet->epoch && !judge_again(skb, packet, flow))
		goto new;
	goto known;

new:
	action = learn(skb, packet);
	if (action != LEARNED && action != RESTORED)
		return action;
	flow = bpf_map_lookup_elem(&flows, &packet->key);
	if (!flow)
		return TC_ACT_SHOT;
	if (action == LEARNED) {
		reason = keep_call(packet);
		return reason ? drop(skb, packet, flow, reason) : go_on(skb, packet, flow);
	}
	if (flow->epoch != packet->epoch && !judge_again(skb, packet, flow))
		return TC_ACT_SHOT;
known:
	if (flow->reason)
		return cut(skb, packet, flow);
	reason = packet->chosen ? keep_call(packet) : KEPT;
	if (reason)
		return drop(skb, packet, flow, reason);
	if (is_counted(skb, packet, flow))
		track(skb, packet, flow);
	return go_on(skb, packet, flow);
}

SEC("tc")
int podway_from_pod(struct __sk_buff *skb)
{
	return handle(skb, FROM_POD);
}

SEC("tc")
int podway_from_wire(struct __sk_buff *skb)
{
	return handle(skb, FROM_WIRE);
}

SEC("tc")
int podway_to_pod(struct __sk_buff *skb)
{
	return handle(skb, TO_POD);
}

// bpf_fib_lookup is for programs under the GPL only, so these files may be had under it: they are the only ones.
char _license[] SEC("license") = "Dual BSD/GPL";
