/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Marks of packets that take a detour by the host's own veth. */
#ifndef EBPNET_DETOUR_H
#define EBPNET_DETOUR_H

#include "fragment_send.h"

/*
 * Clears a mark that only the datapath's packets on a detour may have:
 * firewalls of the host use any mark. Called for all other packets that arrive
 * at an end of the host's own veth. So such a mark there was set by the
 * datapath.
 */
static __always_inline void detour_unmark(struct __sk_buff *skb)
{
	__u32 kind = skb->mark & FRAGMENT_MARK_KIND;

	if (kind >= TUNNEL_MARK_FRAME && kind <= FRAGMENT_MARK)
		skb->mark = 0;
}

#endif
