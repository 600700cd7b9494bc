// SPDX-License-Identifier: Apache-2.0
//
// IP in IP (RFC 2003) without ipip.ko: the two programs that podway.kernel.ipip attaches to tcx or clsact.
//
//   encap   egress of podway-ipip: puts the outer header on and sends the packet out of the uplink
//   decap   ingress of the uplink: takes it off, and brings ICMP errors about the outer packet home
//
// docs/ipip.md says what becomes of each header field, and why.

#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff // more fragments, or an offset
#define OUTER_TTL 64       // RFC 1700's default, as RFC 2003 section 3.1 asks

#define ECN_MASK 3
#define ECN_NOT_ECT 0
#define ECN_ECT_1 1
#define ECN_ECT_0 2
#define ECN_CE 3

#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define MIN_MTU 68 // RFC 791: every module must forward this much unfragmented

// Set before loading, constant to the verifier. podway.kernel.ipip packs it, and reads it back to know what is
// attached: so it may grow at its end only.
const volatile struct {
	__be32 local;
	__u32 uplink;
	__u8 build[6];   // the beginning of this object's SHA-256
	__u8 made_hooks; // the clsact qdisc there is Podway's
	__u8 unused;
} config = {};

// podway.kernel.ipip.COUNTERS has the names, in this order.
enum counter {
	ENCAPSULATED,
	DECAPSULATED,
	RELAYED,
	UNKNOWN_SOURCE,
	DROPPED_NOT_IPV4,
	DROPPED_NO_ROOM,
	DROPPED_FRAGMENT,
	DROPPED_MALFORMED,
	DROPPED_ECN,
	DROPPED_SOURCE,
	N_COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, N_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} ipip_counters SEC(".maps");

// Whose packets are taken: IPv4 addresses in network order. Not preallocated: most clusters are small.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u8);
} ipip_endpoints SEC(".maps");

// Which node may send from an inner source, by its longest prefix. What has no entry at all any node may send:
// the map is not filled yet.
struct source {
	__u32 prefix;
	__be32 address;
};

#define ANY_NODE 0

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source);
	__type(value, __be32);
} ipip_sources SEC(".maps");

// The node that may send from an address, or ANY_NODE.
static __always_inline __be32 sender_of(__be32 address)
{
	struct source source = { .prefix = 32, .address = address };
	__be32 *sender = bpf_map_lookup_elem(&ipip_sources, &source);

	return sender ? *sender : ANY_NODE;
}

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&ipip_counters, &which);

	if (value)
		++*value;
}

static __always_inline int drop(enum counter why)
{
	count(why);
	return TC_ACT_SHOT;
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// The checksum of a header without options (RFC 791); 0 for one that holds its right checksum.
static __always_inline __u16 checksum(const struct iphdr *ip)
{
	const __u16 *word = (const __u16 *)ip;
	__u32 sum = 0;

	for (int i = 0; i < 10; i++)
		sum += word[i];
	return ~fold(sum);
}

SEC("tc")
int podway_encap(struct __sk_buff *skb)
{
	struct iphdr inner, outer = {
		.version = 4,
		.ihl = 5,
		.frag_off = bpf_htons(IP_DF),
		.ttl = OUTER_TTL,
		.protocol = IPPROTO_IPIP,
		.saddr = config.local,
	};
	__u32 length = skb->len - ETH_HLEN + sizeof(outer);
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return drop(DROPPED_NOT_IPV4);
	// The neighbour's hardware address is 02:70 and the IPv4 address of the tunnel's other end.
	if (bpf_skb_load_bytes(skb, 2, &outer.daddr, sizeof(outer.daddr)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &inner, sizeof(inner)))
		return drop(DROPPED_MALFORMED);

	outer.tos = inner.tos; // DSCP, and ECN as in RFC 6040 section 4.1, normal mode
	// A longer one has segmentation ahead of it, which writes the lengths; 0 means so (kernel: iph_set_totlen).
	outer.tot_len = length <= 0xffff ? bpf_htons(length) : 0;
	outer.check = checksum(&outer);

	// Segments stay as long as they are: podway-ipip's MTU has left room for the header.
	if ((bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) &&
	     // What came out of a tunnel may be marked as encapsulated still (EALREADY). A single segment needs no more.
	     (skb->gso_size || bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, flags))) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		return drop(DROPPED_NO_ROOM);
	count(ENCAPSULATED);
	return bpf_redirect_neigh(config.uplink, NULL, 0, 0);
}

// What the inner ECN field becomes (RFC 6040 section 4.2); -1: the packet must be dropped.
static __always_inline int decapsulated_ecn(__u8 inner, __u8 outer)
{
	if (outer == ECN_CE)
		return inner == ECN_NOT_ECT ? -1 : ECN_CE;
	if (outer == ECN_ECT_1 && inner == ECN_ECT_0)
		return ECN_ECT_1;
	return inner;
}

// Write the ECN field of the IPv4 header at `offset` into it and its checksum.
static __always_inline long set_ecn(struct __sk_buff *skb, __u32 offset, __u8 tos, __u8 ecn)
{
	__u8 marked = (tos & ~ECN_MASK) | ecn;

	// The checksum is of 16-bit words: `tos` is the second byte of the first.
	if (bpf_l3_csum_replace(skb, offset + offsetof(struct iphdr, check), bpf_htons(tos), bpf_htons(marked), 2))
		return -1;
	return bpf_skb_store_bytes(skb, offset + offsetof(struct iphdr, tos), &marked, sizeof(marked), 0);
}

// An IPIP packet for us, whose outer header this is, becomes the inner one.
static __always_inline int decapsulate(struct __sk_buff *skb, const struct iphdr *outer)
{
	__be32 source = outer->saddr, sender;
	struct iphdr inner;
	int ecn;

	if (!bpf_map_lookup_elem(&ipip_endpoints, &source)) {
		count(UNKNOWN_SOURCE);
		return TC_ACT_UNSPEC; // a tunnel of somebody else's, or nobody's: the stack knows
	}
	if (outer->frag_off & bpf_htons(IP_FRAGMENT))
		return drop(DROPPED_FRAGMENT);
	if (outer->ihl != 5 || checksum(outer) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(*outer), &inner, sizeof(inner)) ||
	    inner.version != 4)
		return drop(DROPPED_MALFORMED); // all else of the inner header is seen to by ip_rcv
	sender = sender_of(inner.saddr);
	if (sender != ANY_NODE && sender != source)
		return drop(DROPPED_SOURCE);
	ecn = decapsulated_ecn(inner.tos & ECN_MASK, outer->tos & ECN_MASK);
	if (ecn < 0)
		return drop(DROPPED_ECN);
	if (ecn != (inner.tos & ECN_MASK) && set_ecn(skb, ETH_HLEN + sizeof(*outer), inner.tos, ecn))
		return drop(DROPPED_NO_ROOM);
	if (bpf_skb_adjust_room(skb, -(__s32)sizeof(*outer), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return drop(DROPPED_NO_ROOM);
	bpf_set_hash_invalid(skb); // it may be that of the outer addresses, the same for all flows
	count(DECAPSULATED);
	return TC_ACT_UNSPEC;
}

struct icmp_frag_needed {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 unused;
	__be16 mtu; // RFC 1191 section 4
};

// A router's "fragmentation needed" about an outer packet of ours, as it comes in...
struct quoted_outer {
	struct icmp_frag_needed icmp;
	struct iphdr outer; // what follows is the inner packet's beginning
};

// ... and the two headers of what the inner packet's sender gets: as long as the above, where that was.
struct relayed {
	struct iphdr ip;
	struct icmp_frag_needed icmp;
};
_Static_assert(sizeof(struct quoted_outer) == sizeof(struct relayed), "one takes the other's place");

// Bring the error to the inner packet's sender (RFC 2003 section 4.1): cut the outer header out of the
// quotation, and take its length from the MTU. What is no such error goes on to the stack.
static __always_inline int relay(struct __sk_buff *skb, const struct iphdr *ip)
{
	struct quoted_outer had;
	struct iphdr inner;
	struct relayed now;
	__be32 endpoint, sender;
	__u16 check, mtu;
	__u32 sum;

	if (ip->ihl != 5 || ip->frag_off & bpf_htons(IP_FRAGMENT) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(*ip), &had, sizeof(had)) ||
	    had.icmp.type != ICMP_DEST_UNREACH || had.icmp.code != ICMP_FRAG_NEEDED ||
	    had.outer.protocol != IPPROTO_IPIP || had.outer.ihl != 5 || had.outer.saddr != config.local ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(*ip) + sizeof(had), &inner, sizeof(inner)) ||
	    inner.version != 4)
		return TC_ACT_UNSPEC;
	// About what this node sent, or one of its pods: nobody else's packet is in a header of ours.
	sender = sender_of(inner.saddr);
	if (sender != ANY_NODE && sender != config.local)
		return TC_ACT_UNSPEC;
	endpoint = had.outer.daddr;
	check = had.icmp.checksum;
	mtu = bpf_ntohs(had.icmp.mtu);
	if (!bpf_map_lookup_elem(&ipip_endpoints, &endpoint) || mtu < MIN_MTU + sizeof(had.outer))
		return TC_ACT_UNSPEC;

	now.icmp = had.icmp;
	now.icmp.mtu = bpf_htons(mtu - sizeof(had.outer));
	// Incrementally (RFC 1624): an error with a wrong checksum keeps a wrong one.
	now.icmp.checksum = had.icmp.checksum = 0;
	sum = bpf_csum_diff((__be32 *)&had, sizeof(had), (__be32 *)&now.icmp, sizeof(now.icmp), (__u16)~check);
	now.icmp.checksum = ~fold(sum);

	now.ip = *ip;
	now.ip.daddr = inner.saddr;
	now.ip.tot_len = bpf_htons(bpf_ntohs(ip->tot_len) - sizeof(had.outer));
	now.ip.check = 0;
	now.ip.check = checksum(&now.ip);
	if (bpf_skb_adjust_room(skb, -(__s32)sizeof(had.outer), BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &now, sizeof(now), BPF_F_RECOMPUTE_CSUM))
		return drop(DROPPED_NO_ROOM);
	count(RELAYED);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int podway_decap(struct __sk_buff *skb)
{
	struct iphdr ip;

	// A tagged packet belongs to a VLAN device above the uplink.
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return TC_ACT_UNSPEC;
	// Every IPv4 packet of the uplink comes by here: most are done with after this.
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.daddr != config.local)
		return TC_ACT_UNSPEC;
	if (ip.protocol == IPPROTO_IPIP)
		return decapsulate(skb, &ip);
	if (ip.protocol == IPPROTO_ICMP)
		return relay(skb, &ip);
	return TC_ACT_UNSPEC;
}

// Of the helpers none is for programs under the GPL only.
char _license[] SEC("license") = "Apache-2.0";
