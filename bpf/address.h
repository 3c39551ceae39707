/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IP addresses. */
#ifndef EBPNET_ADDRESS_H
#define EBPNET_ADDRESS_H

#include <stdbool.h>

#include <bpf/bpf_endian.h>

#include "mac.h"
#include "types.h"

#define LINK_LOCAL_PREFIX 0xfe80

static __always_inline bool
address_equal(const struct address *a, const struct address *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] &&
	       a->word[1] == b->word[1] && a->word[0] == b->word[0];
}

static __always_inline bool address_is_zero(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline struct address address_from_ipv4(__be32 ipv4)
{
	return (struct address){ { 0, 0, bpf_htonl(0xffff), ipv4 } };
}

static __always_inline bool address_is_ipv4(const struct address *a)
{
	return !(a->word[0] | a->word[1]) && a->word[2] == bpf_htonl(0xffff);
}

/* "::" or 0.0.0.0. */
static __always_inline bool address_is_unspecified(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[3]) &&
	       (!a->word[2] || a->word[2] == bpf_htonl(0xffff));
}

/* RFC 1112, RFC 4291: a multicast, reserved or broadcast address. */
static __always_inline bool address_is_group(const struct address *a)
{
	if (address_is_ipv4(a))
		return bpf_ntohl(a->word[3]) >> 28 >= 14;
	return bpf_ntohl(a->word[0]) >> 24 == 0xff;
}

static __always_inline bool address_is_link_local(const struct address *a)
{
	return bpf_ntohl(a->word[0]) >> 22 == LINK_LOCAL_PREFIX >> 6;
}

/* The link-local address that RFC 4291, appendix A, derives from a MAC. */
static __always_inline struct address address_link_local(const struct mac *mac)
{
	const __u8 *m = mac->byte;

	return (struct address){ {
		bpf_htonl(LINK_LOCAL_PREFIX << 16),
		0,
		bpf_htonl((__u32)(m[0] ^ 0x02) << 24 | m[1] << 16 | m[2] << 8 |
			  0xff),
		bpf_htonl(0xfe000000 | m[3] << 16 | m[4] << 8 | m[5]),
	} };
}

static __always_inline bool address_is_loopback(const struct address *a)
{
	if (address_is_ipv4(a))
		return bpf_ntohl(a->word[3]) >> 24 == 127;
	return !(a->word[0] | a->word[1] | a->word[2]) &&
	       a->word[3] == bpf_htonl(1);
}

#endif
