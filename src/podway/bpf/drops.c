// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the kernel itself drops of pods' packets: no route, a neighbour that does not answer, rp_filter, another's
// firewall. Told into the flow engine's ring, with the kernel's own reason (enum skb_drop_reason).
//
// The program runs where the kernel drops a packet (the tracepoint skb:kfree_skb), on the whole machine: what is none
// of this network namespace, or was dropped for a reason that is not asked for, costs it a few loads.

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flow/address.h"
#include "flow/counters.h"
#include "flow/state.h"
#include "flow/packet.h"
#include "flow/ring.h"

// Set before loading.
const volatile struct {
	__u32 netns; // the inode number of the network namespace
	__u32 no_route; // what NOT_SPECIFIED means in the function that answers for lack of a route, ip_error()
	__u64 ip_error, ip_error_end; // where that stands; 0: it is not known
	__u64 wanted[4]; // a bit for each reason
} drops = {};

// Of the kernel's structs what is read here; libbpf finds out where it stands in the kernel at hand.
#define KERNELS __attribute__((preserve_access_index))

struct ns_common {
	unsigned int inum;
} KERNELS;

struct net {
	struct ns_common ns;
} KERNELS;

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} KERNELS;

struct sk_buff {
	struct net_device *dev;
	unsigned char *head;
	unsigned int len;
	__u16 network_header;
	__be16 protocol;
} KERNELS;

// How much a processor may tell in each tenth of a second: who floods a node is not to flood its history, too. All of
// them share one ring, half of which is for what the engine tells. What is not told is counted (DROPS_WITHHELD).
#define WINDOW 100000000ULL
#define MOST_IN_WINDOW 1000

struct budget {
	__u64 window;
	__u64 used;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct budget);
} budgets SEC(".maps");

static __always_inline bool may_tell(__u64 now)
{
	__u32 only_one = 0;
	struct budget *budget = bpf_map_lookup_elem(&budgets, &only_one);

	if (!budget || bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2)
		return false;
	if (budget->window != now / WINDOW) {
		budget->window = now / WINDOW;
		budget->used = 0;
	}
	return ++budget->used <= MOST_IN_WINDOW;
}

// Fill in ports, or of ICMP type and code.
static __always_inline void read_ports(struct flow_key *key, const unsigned char *upper)
{
	__be16 ports[2];
	__u8 message[2];

	switch (key->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
		if (bpf_probe_read_kernel(ports, sizeof(ports), upper))
			return;
		key->source_port = ports[0];
		key->destination_port = ports[1];
		return;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (!bpf_probe_read_kernel(message, sizeof(message), upper))
			key->destination_port = bpf_htons(message[0] << 8 | message[1]);
	}
}

// Read an IP packet; tell whether it is one. `length` becomes its header's.
static __always_inline bool read_packet(struct flow_key *key, const unsigned char *at, __u32 *length)
{
	struct ipv6hdr ipv6;
	struct iphdr ip;

	__builtin_memset(key, 0, sizeof(*key));
	if (bpf_probe_read_kernel(&ip, sizeof(ip), at))
		return false;
	if (ip.version == 4) {
		key->source = mapped(ip.saddr);
		key->destination = mapped(ip.daddr);
		key->protocol = ip.protocol;
		*length = ip.ihl * 4;
		if (!(ip.frag_off & bpf_htons(IP_OFFSET)))
			read_ports(key, at + *length);
		return true;
	}
	if (ip.version != 6 || bpf_probe_read_kernel(&ipv6, sizeof(ipv6), at))
		return false;
	__builtin_memcpy(&key->source, &ipv6.saddr, sizeof(key->source));
	__builtin_memcpy(&key->destination, &ipv6.daddr, sizeof(key->destination));
	key->protocol = ipv6.nexthdr;
	*length = sizeof(ipv6);
	read_ports(key, at + *length);
	return true;
}

#define VXLAN_HEADERS (8 + 8 + ETH_HLEN) // UDP, VXLAN, and a frame's

// Read a pod's packet, bare or as a tunnel carries it; tell whether it is one.
static __always_inline bool read_pods_packet(struct flow_key *key, const unsigned char *at)
{
	__u32 length = 0;

	if (!read_packet(key, at, &length))
		return false;
	if (is_pod(&key->source) || is_pod(&key->destination))
		return true;
	if (key->protocol == IPPROTO_UDP)
		length += VXLAN_HEADERS;
	else if (key->protocol != IPPROTO_IPIP && key->protocol != IPPROTO_IPV6)
		return false;
	return read_packet(key, at + length, &length) && (is_pod(&key->source) || is_pod(&key->destination));
}

static __always_inline bool is_wanted(__u32 reason)
{
	__u32 word = reason / 64;

	if (reason >= 8 * sizeof(drops.wanted))
		return false;
	barrier_var(word); // else the compiler leaves the mask out, which the verifier wants
	return drops.wanted[word & 3] >> (reason % 64) & 1;
}

SEC("tp_btf/kfree_skb")
int podway_drops(__u64 *arguments) // struct sk_buff *, where, enum skb_drop_reason
{
	struct sk_buff *skb = (struct sk_buff *)arguments[0];
	__u64 from = arguments[1];
	__u32 reason = arguments[2];
	const unsigned char *network;
	__u32 losses = EVENTS_LOST;
	struct net_device *device;
	struct event *event;
	struct flow_key key;
	const __u64 *lost;
	__u64 now;

	if (from - drops.ip_error < drops.ip_error_end - drops.ip_error)
		reason = drops.no_route;
	if (!is_wanted(reason))
		return 0;
	device = skb->dev;
	if (!device || device->nd_net.net->ns.inum != drops.netns)
		return 0;
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	network = skb->head + skb->network_header;
	if (!read_pods_packet(&key, network))
		return 0;
	count(DROPPED_BY_KERNEL);
	now = bpf_ktime_get_ns();
	if (!may_tell(now)) {
		count(DROPS_WITHHELD);
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(EVENTS_LOST);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = now;
	event->key = key;
	event->packets = 1;
	event->bytes = skb->len;
	event->ifindex = device->ifindex;
	lost = bpf_map_lookup_elem(&counters, &losses);
	event->lost = lost ? *lost : 0;
	event->processor = bpf_get_smp_processor_id();
	event->kind = PACKET_DROPPED;
	event->reason = DROPPED_BY_KERNEL;
	event->hook = FROM_WIRE;
	event->detail = reason;
	submit(event);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
