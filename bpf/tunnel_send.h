/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sends frames into tunnels. Part of act.h. */
#ifndef EBPNET_TUNNEL_SEND_H
#define EBPNET_TUNNEL_SEND_H

#include "gre_wrap.h"
#include "route_send.h"
#include "tunnel.h"
#include "verdict.h"

static __always_inline int tunnel_detour(struct __sk_buff *skb, __u32 mark)
{
	skb->mark = mark;
	return bpf_redirect(datapath_ifindex, 0);
}

/* Puts the frame into the tunnel of its decision, and sends it. A superframe
 * that the kernel does not wrap whole takes the detour first. */
static __noinline int
tunnel_encapsulate(struct __sk_buff *skb, struct scratch *scratch,
		   const struct network *network, bool detoured)
{
	__u32 id = scratch->decision.tunnel, sequence = 0;
	const struct tunnel *tunnel = bpf_map_lookup_elem(&tunnels, &id);
	struct tunnel_path *path;
	enum gre_result result;

	if (!tunnel)
		return verdict_drop(skb, REASON_UNKNOWN_TUNNEL);
	if (tunnel->flags & TUNNEL_SEQ) {
		path = bpf_map_lookup_elem(&tunnel_paths, &id);
		if (path)
			sequence = __sync_fetch_and_add(&path->sequence, 1);
	}
	result = gre_encap(skb, scratch, tunnel, network, sequence);
	if (result == GRE_TO_BE_SEGMENTED && !detoured)
		return tunnel_detour(skb, tunnel_mark(scratch->decision.network,
						      id));
	if (result > GRE_WRAPPED_OPAQUE)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	count_tx(&tunnel_stats, id, skb);
	/* A frame with a checksum has taken the detour: it is no superframe. */
	if (gre_put_checksum(skb, tunnel))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	if (result == GRE_WRAPPED_OPAQUE)
		return tunnel_detour(skb, TUNNEL_MARK_PACKET);
	return route_send(skb, &scratch->route);
}

#endif
