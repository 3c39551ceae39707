/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* MAC addresses. */
#ifndef EBPNET_MAC_H
#define EBPNET_MAC_H

#include <stdbool.h>

#include "types.h"

#define MULTICAST_MAC 0x01

static __always_inline bool mac_equal(const struct mac *a, const struct mac *b)
{
	return !__builtin_memcmp(a, b, sizeof(*a));
}

static __always_inline bool mac_is_multicast(const struct mac *mac)
{
	return mac->byte[0] & MULTICAST_MAC;
}

#endif
