/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel's exported headers do not have, by the kernel's own names
 * and values.
 */
#ifndef EBPNET_UAPI_H
#define EBPNET_UAPI_H

/* include/linux/socket.h: not part of the exported headers */
enum {
	AF_INET = 2,
	AF_INET6 = 10,
};

#endif
