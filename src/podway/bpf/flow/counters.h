// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the engine counts, on each processor. podway.kernel.bpf.flow_layout has the names in the same order, which a
// test compares with this file's BTF; docs/datapath.md says what each one means.
#pragma once

// Why a packet is dropped. 0: it is not.
enum reason {
	KEPT,
	MALFORMED,
	EXTENSION_HEADERS,
	NOT_OWN_SOURCE,
	POD_SOURCE_FROM_WIRE,
	LINK_MESSAGE,
	ICMP_ERROR_FORGED,
	ICMP_ERROR_UNRELATED,
	REPLY_WITHOUT_REQUEST,
	FRAGMENT_WITHOUT_FIRST,
	DENIED_EGRESS,
	DENIED_INGRESS,
	POLICY_NOT_WRITTEN,
	QUOTA_HALF_OPEN,
	QUOTA_ESTABLISHED,
	TABLE_FULL,
	SERVICE_NO_ENDPOINT,
	SERVICE_NO_PORT,
	SERVICE_PORTS_TAKEN,
	DROPPED_BY_KERNEL, // by drops.c, which says why
	N_REASONS,
};

// What else is counted: the numbers go on after the reasons.
enum counter {
	CARRIED_PEER = N_REASONS,
	CARRIED_WIRE,
	TO_STACK,
	FLOWS_MADE,
	FLOWS_JUDGED_AGAIN,
	WAYS_RENEWED,
	EVENTS_LOST,
	RESETS_SENT,
	UNREACHABLES_SENT,
	DROPS_WITHHELD, // of the kernel's own: too many to be told each
	N_COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, N_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 what)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &what);

	if (value)
		++*value;
}
