/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packet as a program gets it: a socket buffer in TC, the frame of the
 * device in XDP. Stages that run in both use ctx_t and the functions here. An
 * XDP program defines CTX_XDP before it includes them.
 */
#ifndef EBPNET_CTX_H
#define EBPNET_CTX_H

#ifdef CTX_XDP
#include "ctx_xdp.h"
#else
#include "ctx_tc.h"
#endif

#endif
