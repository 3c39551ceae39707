/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a program is handed a packet as: a socket buffer in TC, a frame as the
 * device received it in XDP. The stages that run in both know it as ctx_t and
 * by the functions here; what includes them in XDP defines CTX_XDP first.
 */
#ifndef EBPNET_CTX_H
#define EBPNET_CTX_H

#ifdef CTX_XDP
#include "ctx_xdp.h"
#else
#include "ctx_tc.h"
#endif

#endif
