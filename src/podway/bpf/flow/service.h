// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Services: what a pod sends to the address of one is led to a backend before anything else is asked, so that all the
// rest (flows, policy, ways) only knows backends. What comes back is given the Service's name as the last thing
// before it goes into the pod. Which backend a connection has is remembered by `calls`; whose name its answers bear
// is in its flow. docs/services.md.
#pragma once

#ifndef barrier
#define barrier() asm volatile("" ::: "memory")
#endif

struct frontend_key {
	struct address address;
	__be16 port;   // 0, without a protocol: the whole address is a Service's
	__u8 protocol;
	__u8 unused; // 0
};

#define FRONTEND_DROP 1 // without backends: drop, and do not refuse; other flags are not for pods

struct frontend {
	__u32 backends; // a set
	__u32 affinity; // for how many seconds a client stays with a backend; 0: not at all
	__u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} frontends SEC(".maps");

// A set of backends as a list: place 0 says how many there are.
struct choice_key {
	__u32 backends, place;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 524288);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct choice_key);
	__type(value, __u32);
} choices SEC(".maps");

struct backend {
	__u32 backends; // the set that it is of
	struct address address;
	__be16 port;
	__u16 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

#define CALL_TO_ITSELF 1

// What a pod sends to a Service from one of its ports.
struct call {
	__u32 backend; // its number
	__u32 epoch;   // as of which it is known to be there
	__u32 from;    // the pod's link
	struct address address;
	__be16 port;
	__u16 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct call);
} calls SEC(".maps");

// Those of TCP are apart: who asks for many names must not have an idle connection forgotten, which would break it.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct call);
} tcp_calls SEC(".maps");

static __always_inline struct call *call_of(const struct flow_key *key)
{
	struct call *call;

	if (key->protocol == IPPROTO_TCP) {
		call = bpf_map_lookup_elem(&tcp_calls, key);
		barrier(); // one map a call: the verifier wants to know which
		return call;
	}
	return bpf_map_lookup_elem(&calls, key);
}

static __always_inline long remember(const struct flow_key *key, const struct call *call)
{
	long failed;

	if (key->protocol == IPPROTO_TCP) {
		failed = bpf_map_update_elem(&tcp_calls, key, call, BPF_ANY);
		barrier();
		return failed;
	}
	return bpf_map_update_elem(&calls, key, call, BPF_ANY);
}

struct affinity_key {
	struct address client;
	__u32 backends;
};

struct affinity {
	__u64 seen; // of its last new connection
	__u32 backend;
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

// Counted up after any change of backends.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} backends_epoch SEC(".maps");

static __always_inline __u32 epoch_of_backends(void)
{
	__u32 only_one = 0;
	const __u32 *epoch = bpf_map_lookup_elem(&backends_epoch, &only_one);

	return epoch ? *(volatile const __u32 *)epoch : 0;
}

// What is worked on while a packet is led; on no stack, which has no room for it.
struct leading {
	struct call call;
	struct flow_key called; // the call's key
	struct flow_key to; // what its flow's key is behind the Service
	struct affinity_key client;
	struct affinity affinity; // `seen` is 0 if clients need not stay
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct leading);
} leading SEC(".maps");

static __always_inline void lead_to(struct leading *leading, const struct flow_key *key)
{
	leading->to = *key;
	leading->to.destination = leading->call.address;
	leading->to.destination_port = leading->call.port;
	if (!(leading->call.flags & CALL_TO_ITSELF))
		return;
	// A pod that calls itself is called by its gateway, to which it answers: 169.254.1.1, fe80::1.
	if (is_ipv4(&key->source)) {
		leading->to.source.word[3] = bpf_htonl(0xa9fe0101);
	} else {
		leading->to.source.word[0] = bpf_htonl(0xfe800000);
		leading->to.source.word[1] = leading->to.source.word[2] = 0;
		leading->to.source.word[3] = bpf_htonl(1);
	}
}

// Whether a flow to a backend is not that of a call to this Service, but of the pod to the backend itself, or by another.
static __always_inline bool is_another(const struct packet *packet, const struct flow *flow)
{
	return !(flow->flags & FLOW_SERVICE) || flow->flags & FLOW_REPLY || flow->service_port != packet->key.destination_port ||
	       !equal(&flow->service, &packet->key.destination);
}

// Whether a packet goes where the former ones from its port went. What was open on TCP does as long as its pod lives;
// of all else the backend must be there, and the flow be alive.
__noinline bool stays(const struct packet *packet, struct call *call, struct leading *leading)
{
	const struct backend *backend;
	struct flow *flow;
	__u32 epoch;

	if (!packet || !call || !leading)
		return false;
	epoch = epoch_of_backends();
	leading->call = *call;
	lead_to(leading, &packet->key);
	if (packet->key.protocol == IPPROTO_TCP && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return true;
	flow = bpf_map_lookup_elem(&flows, &leading->to);
	if (!flow || !lives(&leading->to, flow, packet->now) || begins_anew(packet, flow) || is_another(packet, flow))
		return false;
	if (call->epoch != epoch) {
		backend = bpf_map_lookup_elem(&backends, &call->backend);
		if (!backend || !equal(&backend->address, &call->address) || backend->port != call->port)
			return false;
		call->epoch = epoch;
	}
	return true;
}

// Whether another connection of the same pod's port has a backend already: it cannot be told from this one.
__noinline bool is_taken(const struct packet *packet, const struct flow_key *to)
{
	struct flow *flow;

	if (!packet || !to)
		return true;
	flow = bpf_map_lookup_elem(&flows, to);
	if (!flow || flow->state >= CLOSED || !lives(to, flow, packet->now))
		return false;
	return is_another(packet, flow);
}

#define MOST_TRIES 6

// Choose a backend for a connection, which keep_call remembers. Returns a reason.
__noinline int choose(struct __sk_buff *skb, const struct packet *packet, const struct frontend *frontend,
		      struct leading *leading)
{
	struct choice_key choice = {};
	struct affinity *remembered = NULL;
	const struct backend *backend;
	const __u32 *found;
	__u32 number, count;

	if (!packet || !frontend || !leading)
		return SERVICE_NO_ENDPOINT;
	leading->call.epoch = epoch_of_backends(); // first: what changes meanwhile counts it up again
	leading->call.from = skb->ifindex;
	choice.backends = frontend->backends;
	found = bpf_map_lookup_elem(&choices, &choice);
	count = found ? *found : 0;
	if (!count)
		return SERVICE_NO_ENDPOINT;
	if (frontend->affinity) {
		leading->client.client = packet->key.source;
		leading->client.backends = frontend->backends;
		remembered = bpf_map_lookup_elem(&affinities, &leading->client);
		// Signed: another processor may have seen it later than this packet's time.
		if (remembered && (__s64)(packet->now - remembered->seen) > (__s64)(frontend->affinity * SECOND))
			remembered = NULL;
	}
	for (int tries = 0; tries < MOST_TRIES; tries++) {
		if (!tries && remembered) {
			number = remembered->backend;
		} else {
			choice.place = 1 + bpf_get_prandom_u32() % count;
			found = bpf_map_lookup_elem(&choices, &choice);
			if (!found)
				continue;
			number = *found;
		}
		backend = bpf_map_lookup_elem(&backends, &number);
		if (!backend || backend->backends != frontend->backends)
			continue;
		leading->call.backend = number;
		leading->call.address = backend->address;
		leading->call.port = backend->port;
		leading->call.flags = equal(&backend->address, &packet->key.source) ? CALL_TO_ITSELF : 0;
		lead_to(leading, &packet->key);
		if (is_taken(packet, &leading->to))
			continue;
		leading->called = packet->key;
		leading->affinity.seen = frontend->affinity ? packet->now : 0;
		leading->affinity.backend = number;
		return KEPT;
	}
	return SERVICE_PORTS_TAKEN;
}

// Remember the backend that was chosen for a packet, now that its flow is in: all pods share the tables, so what
// policy or a quota keeps out must not turn them over. Returns a reason.
__noinline int keep_call(const struct packet *packet)
{
	struct leading *work;
	__u32 only_one = 0;

	if (!packet || !packet->chosen)
		return KEPT;
	work = bpf_map_lookup_elem(&leading, &only_one);
	if (!work || remember(&work->called, &work->call))
		return TABLE_FULL;
	if (work->affinity.seen)
		bpf_map_update_elem(&affinities, &work->client, &work->affinity, BPF_ANY);
	return KEPT;
}

// Whether a packet may be a Service's, by the flow to its destination itself. A Service may be newer than the flow,
// but not than the epoch. What is open on TCP goes on as it is: who carried it knows its backend.
static __always_inline bool may_be_led(const struct packet *packet, struct flow *flow)
{
	bool first = (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (!flow || begins_anew(packet, flow))
		return true;
	if (flow->flags & FLOW_REPLY || (flow->epoch == packet->epoch && !first))
		return false;
	return first || !is_open(packet->key.protocol, flow->state) || !lives(&packet->key, flow, packet->now);
}

// Have the flow of TCP to a Service's address itself, whose place a led connection takes, count for nothing: it is
// closed, and of an epoch that is over, so that what follows is led as well.
__noinline int give_way(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	struct flow_key back;
	struct flow *other;

	if (!packet || !flow)
		return 0;
	forget(skb, packet);
	back = reversed(&packet->key);
	other = bpf_map_lookup_elem(&flows, &back);
	if (other)
		other->state = CLOSED;
	flow->state = CLOSED;
	flow->epoch = packet->epoch - 1;
	return 0;
}

#define NO_SERVICE (-4)
#define LED (-5)

// Lead what a pod sends to a Service to a backend. NO_SERVICE; LED: the packet and its key are the backend's now;
// else what becomes of the packet. `flow` is the one to the address itself, if there is one.
__noinline int lead(struct __sk_buff *skb, struct packet *packet, struct flow *flow)
{
	struct frontend_key key = {};
	const struct frontend *frontend;
	struct leading *work;
	struct call *known;
	__u32 only_one = 0;
	int reason;

	work = bpf_map_lookup_elem(&leading, &only_one);
	if (!packet || !work)
		return TC_ACT_SHOT;
	if (endpoint_at(&packet->key.destination) || is_pod(&packet->key.destination))
		return NO_SERVICE;
	known = call_of(&packet->key);
	if (!known || known->from != skb->ifindex || !stays(packet, known, work)) {
		key.address = packet->key.destination;
		key.port = packet->key.destination_port;
		key.protocol = packet->key.protocol;
		frontend = bpf_map_lookup_elem(&frontends, &key);
		if (!frontend) {
			key.port = 0;
			key.protocol = 0;
			if (!bpf_map_lookup_elem(&frontends, &key))
				return NO_SERVICE;
		}
		reason = check_ends(skb, packet);
		if (!reason && (packet->tcp_flags & TCP_RST || (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)))
			reason = REPLY_WITHOUT_REQUEST;
		if (!reason)
			reason = frontend ? choose(skb, packet, frontend, work) : SERVICE_NO_PORT;
		if (reason) {
			drop(skb, packet, NULL, reason);
			if (reason == SERVICE_NO_PORT ||
			    (reason == SERVICE_NO_ENDPOINT && frontend && !(frontend->flags & FRONTEND_DROP)))
				return refuse(skb, packet);
			return TC_ACT_SHOT;
		}
		packet->chosen = 1;
	}
	if (flow && packet->key.protocol == IPPROTO_TCP && (flow->state != CLOSED || flow->epoch == packet->epoch))
		give_way(skb, packet, flow);
	packet->service = packet->key.destination;
	packet->service_port = packet->key.destination_port;
	packet->led = work->call.flags & CALL_TO_ITSELF ? FLOW_SERVICE | FLOW_TO_ITSELF : FLOW_SERVICE;
	if (put_end(skb, packet, &work->to.destination, work->to.destination_port, false) ||
	    (work->call.flags & CALL_TO_ITSELF && put_end(skb, packet, &work->to.source, work->to.source_port, true)))
		return TC_ACT_SHOT;
	packet->key = work->to;
	if (is_ipv4(&packet->key.destination) &&
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, check), &packet->ipv4_check, sizeof(packet->ipv4_check)))
		return TC_ACT_SHOT;
	return LED;
}
