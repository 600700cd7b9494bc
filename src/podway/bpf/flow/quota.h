// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// How many flows an endpoint may have, so that one pod's flood takes no place from the others'.
//
// Half-open ones and those without a connection are held to a rate: each moves a time ahead by its share of the
// window, and the time may be at most a window ahead of now. So at most twice the quota live at once, and nobody
// need hear of their end: an agent that is away for days changes nothing. Of TCP's open ones the ends are seen, so
// they are counted; what ends silently the agent takes off when it looks.
#pragma once

struct quota_key {
	__u32 ifindex; // of the endpoint's link
	__u32 incoming;
};

struct quota {
	__u64 half_open_until;
	__u64 replied_until;
	__u64 open; // signed
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct quota_key);
	__type(value, struct quota);
} quotas SEC(".maps");

#define QUOTA_WINDOW (120 * SECOND)

static __always_inline struct quota *quota_of(const struct flow *flow)
{
	struct quota_key key = { flow->owner, !!(flow->flags & FLOW_INCOMING) };
	struct quota *found = bpf_map_lookup_elem(&quotas, &key);

	if (!found) {
		struct quota none = {};

		bpf_map_update_elem(&quotas, &key, &none, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&quotas, &key);
	}
	return found;
}

// Take one of `most` in a window. Processors that do so at once may go over by as many.
static __always_inline bool take(__u64 *until, __u32 most, __u64 now)
{
	__u64 share = QUOTA_WINDOW / (most ?: 1);

	if (*until < now)
		*until = now;
	if (*until + share > now + QUOTA_WINDOW)
		return false;
	__sync_fetch_and_add(until, share);
	return true;
}

static __always_inline void give_back(__u64 *until, __u32 most)
{
	__sync_fetch_and_add(until, -(QUOTA_WINDOW / (most ?: 1)));
}
