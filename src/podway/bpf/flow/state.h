// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the agent tells all programs at once.
#pragma once

// Set before loading, constant to the verifier; podway.kernel reads it back to know what is attached. It may grow
// at its end only.
const volatile struct {
	__u64 build; // the beginning of this object's SHA-256
} config = {};

// The build whose programs work; those of another build leave every packet to the next program. So a new build is
// attached beside the former one on all devices, and one write here goes over to it everywhere at once. The layout
// of this map never changes.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} active SEC(".maps");

struct state {
	__u32 epoch;	      // counted up after any change of endpoints, identities, pools, rules
	__u32 way_generation; // counted up to have every way looked up anew
	__u32 half_open;      // quota of an endpoint, in flows
	__u32 established;    // likewise
	__u32 generations;    // the last that a rule set was given
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");

static __always_inline const struct state *the_state(void)
{
	__u32 only_one = 0;

	return bpf_map_lookup_elem(&state, &only_one);
}

// The state, if the programs of this build are those that work.
static __always_inline const struct state *current_state(void)
{
	__u32 only_one = 0;
	const __u64 *build = bpf_map_lookup_elem(&active, &only_one);

	return build && *build == config.build ? the_state() : NULL;
}

// When the engine began where none was before: pods of then may have calls under way that nobody saw.
struct beginning {
	__u64 settled; // what is answered later was asked since, but by TCP; CLOCK_MONOTONIC, ns
	__u32 newest;  // no link of then has a greater ifindex
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct beginning);
} beginning SEC(".maps");

static __always_inline const struct beginning *the_beginning(void)
{
	__u32 only_one = 0;

	return bpf_map_lookup_elem(&beginning, &only_one);
}

// Where a program sees a packet.
enum hook {
	FROM_POD,  // ingress of a pod's host link
	FROM_WIRE, // ingress of the uplink and of tunnels' devices
	TO_POD,	   // egress of a pod's host link: what comes from the stack
};

// Pods of this node, by each of their addresses.
struct endpoint {
	__u32 ifindex; // of the host link
	__u32 egress_rules, ingress_rules; // rule sets
	__u32 flags;
	__u32 egress_audit, ingress_audit; // rule sets by which is only told what they would deny
};

#define ENDPOINT_BRIDGED 1 // a port of a bridge: its frames are not routed, and never carried straight
#define ENDPOINT_LIMITED 2 // somebody limits what passes its link, on the way that the stack takes
#define ENDPOINT_NAMES 4 // its policies name domains: the agent learns from the answers of DNS that it gets

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct address);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

static __always_inline const struct endpoint *endpoint_at(const struct address *address)
{
	return bpf_map_lookup_elem(&endpoints, address);
}

// Ranges of pods' addresses in the whole cluster: what is sent between two of them no stack translates.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} pools SEC(".maps");

static __always_inline bool is_pod(const struct address *address)
{
	struct prefix prefix = only(address);

	return bpf_map_lookup_elem(&pools, &prefix) != NULL;
}
