/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Internet checksum: RFC 1071. */
#ifndef EBPNET_CSUM_H
#define EBPNET_CSUM_H

#include <linux/types.h>

#include <bpf/bpf_helpers.h>

static __always_inline __sum16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

#endif
