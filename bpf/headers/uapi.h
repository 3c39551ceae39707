/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel's headers of the build machine may be too old to have.
 * Each constant is the kernel's own name and value, with the version that
 * brought it.
 */
#ifndef EBPNET_UAPI_H
#define EBPNET_UAPI_H

/* include/uapi/linux/bpf.h, since 6.3 */
enum {
	EBPNET_ADJ_ROOM_DECAP_L3_IPV4 = 1 << 7,
	EBPNET_ADJ_ROOM_DECAP_L3_IPV6 = 1 << 8,
};

/* include/linux/socket.h: not part of the exported headers */
enum {
	AF_INET = 2,
	AF_INET6 = 10,
};

#endif
