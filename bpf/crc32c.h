/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SCTP's checksum, CRC32c: RFC 9260, appendix A. */
#ifndef EBPNET_CRC32C_H
#define EBPNET_CRC32C_H

#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#define CRC32C_POLYNOMIAL 0x82f63b78 /* its lowest power is the highest bit */

/* x to the power of 8 * 2^i, modulo the polynomial: the factor for 2^i more
 * bytes. */
static const __u32 crc32c_powers[] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a,
	0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/*
 * Multiplies by each bit. A mask of 0 or -1, or a branch, would do the same,
 * but since Linux 7.0 the verifier follows both values of such a mask. Inside
 * a callback of bpf_loop() it does not merge the two, so that the 32 rounds
 * would pass its limit. The barrier keeps the compiler from making a branch.
 */
static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		__u32 high = a >> 31, low = b & 1;

		barrier_var(high);
		barrier_var(low);
		product ^= b * high;
		a <<= 1;
		b = b >> 1 ^ CRC32C_POLYNOMIAL * low;
	}
	return product;
}

struct crc32c_change {
	__u32 value;
	__u32 length;
};

static int crc32c_shift(__u32 i, void *context)
{
	struct crc32c_change *change = context;

	i %= sizeof(crc32c_powers) / sizeof(crc32c_powers[0]);
	if (change->length >> i & 1)
		change->value =
			crc32c_multiply(crc32c_powers[i], change->value);
	return 0;
}

/*
 * The change (by exclusive or) of the CRC32c of @length bytes if @value is
 * added to the first four bytes. The CRC is linear, so the other bytes are not
 * read.
 */
static __always_inline __u32 crc32c_change(__u32 value, __u32 length)
{
	struct crc32c_change change = { value, length };

	bpf_loop(sizeof(crc32c_powers) / sizeof(crc32c_powers[0]), crc32c_shift,
		 &change, 0);
	return change.value;
}

#endif
