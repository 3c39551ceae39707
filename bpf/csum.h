/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Internet checksum: RFC 1071. */
#ifndef EBPNET_CSUM_H
#define EBPNET_CSUM_H

#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "types.h"

static __always_inline __sum16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

/* Updates a checksum: RFC 1624, equation 3. @change is the sum of the new words
 * and of the complements of the old words. */
static __always_inline __sum16 csum_update(__sum16 check, __u64 change)
{
	change += (__u16)~check;
	return csum_fold((change & 0xffff) + (change >> 16 & 0xffff) +
			 (change >> 32));
}

/* Adds the addresses of a pseudo-header to @sum. Callers add its length and its
 * protocol. The ::ffff in front of an IPv4 address adds 0. */
static __always_inline __s64 csum_pseudo(const struct address *src,
					 const struct address *dst, __s64 sum)
{
	sum = bpf_csum_diff(NULL, 0, (__be32 *)src, sizeof(*src), sum);
	return bpf_csum_diff(NULL, 0, (__be32 *)dst, sizeof(*dst), sum);
}

#endif
