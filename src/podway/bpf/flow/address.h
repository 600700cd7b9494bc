// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Addresses of both families as 16 bytes: IPv4 as RFC 4291 section 2.5.5.2 maps it, so that all else is one code.
#pragma once

struct address {
	__be32 word[4];
};

static __always_inline struct address mapped(__be32 ipv4)
{
	return (struct address){ { 0, 0, bpf_htonl(0xffff), ipv4 } };
}

static __always_inline bool equal(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline bool is_ipv4(const struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

// A prefix as a trie's key. The family goes first, so that ::/0 does not cover IPv4; `length` counts its 32 bits,
// and for IPv4 the 96 of the mapping.
struct prefix {
	__u32 length;
	__be32 family; // 4 or 6
	struct address address;
};

#define PREFIX_OF_ONE (32 + 128)

static __always_inline struct prefix only(const struct address *a)
{
	return (struct prefix){ PREFIX_OF_ONE, bpf_htonl(is_ipv4(a) ? 4 : 6), *a };
}
