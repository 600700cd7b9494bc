// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Fragments after the first bear no ports: they are those of the first one, remembered.
#pragma once

struct fragment_key {
	struct address source, destination;
	__u32 id;
	__u32 protocol;
};

struct fragment_ports {
	__be16 source, destination;
	__u32 unused;
	__u64 seen;
};

#define FRAGMENT_NS (30ULL * 1000000000) // as long as the kernel waits for the rest (ipfrag_time)

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment_ports);
} fragments SEC(".maps");

// Remember a first fragment's ports, or give a later one the first one's. Returns a reason. A later one that comes
// before the first is dropped: nobody can say yet whose it is.
static __always_inline int reassociate(struct packet *packet)
{
	struct fragment_key key = {
		.source = packet->key.source,
		.destination = packet->key.destination,
		.id = packet->fragment_id,
		.protocol = packet->key.protocol,
	};

	if (packet->fragment == FIRST_FRAGMENT) {
		struct fragment_ports ports = { packet->key.source_port, packet->key.destination_port, 0, packet->now };

		bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
	} else {
		const struct fragment_ports *ports = bpf_map_lookup_elem(&fragments, &key);

		if (!ports || packet->now - ports->seen > FRAGMENT_NS)
			return FRAGMENT_WITHOUT_FIRST;
		packet->key.source_port = ports->source;
		packet->key.destination_port = ports->destination;
	}
	return KEPT;
}
