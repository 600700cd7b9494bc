// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Identities and rules: may this connection be?
//
// A set of rules is for one direction of all pods that have the same policies. An entry of it says for one
// identity, protocol and prefix of ports what the rules of each tier say. Every entry that matches is looked at, and
// in each tier the one of the greatest precedence is kept: priority and specificity have nothing to do with each
// other in ClusterNetworkPolicy, so the longest match alone would need the table closed under intersection (products
// of rules, identities and ports, rewritten at every change). This is paid for once a flow, not once a packet.
#pragma once

enum tier { TIER_ADMIN, TIER_NETWORK_POLICY, TIER_BASELINE, N_TIERS };
enum verdict { NOTHING_SAID, ALLOW, PASS, DENY };

// Rules that are the engine's own; those of policies have numbers from 16 on.
enum {
	RULE_NONE,
	RULE_FROM_NODE, // the node's own processes may reach its pods
};

#define ANYBODY 0
#define RULES_NOT_THERE (~0U) // the generation of a set that is not written

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} identities SEC(".maps");

static __always_inline __u32 identity_of(const struct address *address)
{
	struct prefix prefix = only(address);
	__u32 *identity = bpf_map_lookup_elem(&identities, &prefix);

	return identity ? *identity : ANYBODY;
}

struct rule_set {
	__u32 generation;   // no two sets ever had the same; 0: the set is not there
	__u32 port_lengths; // bit n: an entry has a prefix of n bits of the port
};

#define N_RULE_SETS 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, N_RULE_SETS);
	__type(key, __u32);
	__type(value, struct rule_set);
} rule_sets SEC(".maps");

struct rule_key {
	__u32 set;
	__u32 identity; // or ANYBODY
	__u16 port;	// its first `port_length` bits, in the host's order; of ICMP type and code
	__u8 port_length;
	__u8 protocol; // 0: any
};

// What a tier says: the greater number goes before the smaller. From the top: 30 bits of precedence and two of the
// verdict (so that among equal ones, which should not be, it is deny, pass, allow), then the rule's number.
struct rules_entry {
	__u64 tier[N_TIERS];
};

#define VERDICT_OF(said) ((said) >> 32 & 3)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, struct rules_entry);
} rules SEC(".maps");

// A question, and what is known so far. On no stack: there the verifier would follow each comparison's outcome.
struct question {
	struct rules_entry best;
	__u64 port_lengths;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct question);
} question SEC(".maps");

static __always_inline void consider(struct rules_entry *best, const struct rule_key *key)
{
	const struct rules_entry *entry = bpf_map_lookup_elem(&rules, key);

	if (!entry)
		return;
	for (int tier = 0; tier < N_TIERS; tier++)
		if (entry->tier[tier] > best->tier[tier])
			best->tier[tier] = entry->tier[tier];
}

struct opinion {
	__u32 generation; // of the set
	__u32 rule;
	enum reason reason; // KEPT: allowed
};

// Ask a set about an identity (the far end's), a protocol and a destination port (in the host's order).
__noinline int ask(struct opinion *opinion, __u32 set, __u32 identity, __u8 protocol, __u16 port)
{
	struct question *asked;
	struct rule_key key = { .set = set };
	const struct rule_set *found;
	__u32 only_one = 0;

	if (!opinion)
		return 0;
	opinion->rule = RULE_NONE;
	opinion->generation = 0;
	opinion->reason = set ? POLICY_NOT_WRITTEN : KEPT;
	if (!set)
		return 0;
	found = bpf_map_lookup_elem(&rule_sets, &set);
	if (!found || !found->generation) {
		opinion->generation = RULES_NOT_THERE;
		return 0;
	}
	asked = bpf_map_lookup_elem(&question, &only_one);
	if (!asked)
		return 0;
	__builtin_memset(&asked->best, 0, sizeof(asked->best));
	// The generation first: what is written meanwhile counts it up afterwards.
	opinion->generation = *(volatile const __u32 *)&found->generation;
	asked->port_lengths = *(volatile const __u32 *)&found->port_lengths;

	consider(&asked->best, &key); // anybody, any protocol
	key.identity = identity;
	if (identity)
		consider(&asked->best, &key);
	key.protocol = protocol;
	for (int length = 0; length <= 16; length++) {
		if (!(*(volatile __u64 *)&asked->port_lengths & 1U << length))
			continue;
		key.port_length = length;
		key.port = port & ~(0xffffU >> length);
		key.identity = ANYBODY;
		consider(&asked->best, &key);
		key.identity = identity;
		if (identity)
			consider(&asked->best, &key);
	}
	for (int tier = 0; tier < N_TIERS; tier++) {
		__u64 said = asked->best.tier[tier];

		if (VERDICT_OF(said) == ALLOW || VERDICT_OF(said) == DENY) {
			opinion->rule = said;
			opinion->reason = VERDICT_OF(said) == ALLOW ? KEPT : DENIED_EGRESS;
			return 0;
		}
	}
	opinion->reason = KEPT;
	return 0;
}
