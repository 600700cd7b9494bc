// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Calls that the stack may translate, as kube-proxy does with what is sent to a Service that this engine does not
// serve. Answers come from whom the stack chose, of which no flow tells, and have to go back through it. So it is
// remembered from which ports pods called what is no pod; what then comes there, and may be an answer, is left to the
// stack, and podway_to_pod judges what that makes of it.
#pragma once

struct caller {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 unused; // 0
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct caller);
	__type(value, __u32);
} callers SEC(".maps");

static __always_inline struct caller caller_of(const struct flow_key *call)
{
	return (struct caller){ .address = call->source, .port = call->source_port, .protocol = call->protocol };
}

// Note a call of one of this node's pods.
__noinline int note_caller(const struct flow_key *call)
{
	struct caller caller;
	__u32 there = 1;

	if (!call || !endpoint_at(&call->source) || endpoint_at(&call->destination) || is_pod(&call->destination))
		return 0;
	caller = caller_of(call);
	return bpf_map_update_elem(&callers, &caller, &there, BPF_ANY);
}

// Whether something was sent from where such a call came.
__noinline bool is_callers(const struct flow_key *sent)
{
	struct caller caller;

	if (!sent)
		return false;
	caller = caller_of(sent);
	return bpf_map_lookup_elem(&callers, &caller) != NULL;
}

// Whether what comes from other machines for a pod, and is of no flow, may answer such a call. Not what opens a
// connection of TCP.
static __always_inline bool is_for_caller(const struct packet *packet)
{
	struct flow_key back;

	if (packet->hook != FROM_WIRE || (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return false;
	back = reversed(&packet->key);
	return is_callers(&back);
}
