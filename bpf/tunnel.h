/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tunnels: which frames go into one and how, and the path MTU of each. */
#ifndef EBPNET_TUNNEL_H
#define EBPNET_TUNNEL_H

#include "decision.h"
#include "gre_wrap.h"
#include "packet.h"
#include "route.h"

/*
 * Some frames take a detour: out of the far end of the host's own veth and in
 * at the near end, where to_tunnel() goes on with them. These are: copies
 * flooded into a tunnel, because each tunnel needs other headers; packets into
 * a tunnel with checksums or sequence numbers, because the detour segments
 * superframes and completes checksums; and packets whose outer headers the
 * kernel does not know yet. skb->mark has the network and the tunnel.
 */
enum tunnel_mark {
	TUNNEL_MARK_FRAME = 0xeb100000, /* a frame, to wrap */
	TUNNEL_MARK_PACKET = 0xeb200000, /* a wrapped packet, to send */
	TUNNEL_MARK_KIND = 0xfff00000,
	TUNNEL_MARK_NETWORK = 10, /* bits to shift by */
};
_Static_assert((int)MAX_NETWORKS <= 1 << 10 && (int)MAX_TUNNELS <= 1 << 10,
	       "enum tunnel_mark");

static __always_inline __u32 tunnel_mark(__u32 network, __u32 tunnel)
{
	return TUNNEL_MARK_FRAME | network << TUNNEL_MARK_NETWORK | tunnel;
}

/* Whether a packet with the mark is on its detour. */
static __always_inline bool tunnel_is_detoured(__u32 mark)
{
	return (mark & TUNNEL_MARK_KIND) == TUNNEL_MARK_FRAME ||
	       (mark & TUNNEL_MARK_KIND) == TUNNEL_MARK_PACKET;
}

static __always_inline __u32 tunnel_network_of(__u32 mark)
{
	return mark >> TUNNEL_MARK_NETWORK & ((1 << TUNNEL_MARK_NETWORK) - 1);
}

/* How long a tunnel uses a smaller path MTU that a router has reported: RFC
 * 1191, 6.3. */
#define TUNNEL_MTU_AGE (600 * SECONDS)

/* The smallest path MTU that we accept from the underlay: Linux's min_pmtu, and
 * RFC 8200, 5. */
#define TUNNEL_LEAST4 552
#define TUNNEL_LEAST6 1280

static __always_inline __u32 tunnel_lowered_mtu(const struct tunnel_path *path)
{
	if (bpf_ktime_get_coarse_ns() >= path->lowered + TUNNEL_MTU_AGE)
		return 0;
	return path->mtu;
}

/* The longest packet that fits a tunnel with outer headers of @room bytes. */
static __always_inline __u32 tunnel_most(const struct packet *pkt,
					 const struct tunnel_path *path,
					 const struct route *route, __u32 room)
{
	__u32 least = pkt->ethertype == bpf_htons(ETH_P_IPV6) ? TUNNEL_LEAST6 :
								TUNNEL_LEAST4;
	__u32 mtu = tunnel_lowered_mtu(path);

	if (mtu && mtu < least + room)
		mtu = least + room;
	if (!mtu || (route->mtu && route->mtu < mtu))
		mtu = route->mtu ? route->mtu : 0xffff;
	return mtu > room ? mtu - room : 0;
}

/* The length of the packet in the frame; of a superframe's longest segment. */
static __always_inline enum reason
tunnel_packet_length(struct __sk_buff *skb, struct packet *pkt, __u32 *length)
{
	enum reason reason = skb->gso_size ? parse_l4(skb, pkt) : REASON_NONE;

	*length = packet_length(skb, pkt);
	return reason;
}

/*
 * Decides about a frame of @network into the tunnel @id, and finds the route of
 * its outer packet. @detoured: the frame has taken its detour. A frame that is
 * too large is refused with REASON_TOO_BIG.
 */
__verified_once int
tunnel_decide(struct __sk_buff *skb, const struct network *network, __u32 id,
	      bool detoured)
{
	const struct tunnel *tunnel = bpf_map_lookup_elem(&tunnels, &id);
	struct tunnel_path *path = bpf_map_lookup_elem(&tunnel_paths, &id);
	struct scratch *scratch = scratch_get();
	struct route *route;
	enum reason reason;
	__u32 length, most;

	if (!network || !scratch)
		return ACTION_DROP;
	if (!tunnel || !path || address_is_zero(&tunnel->ends.remote))
		return decision_drop(scratch, REASON_UNKNOWN_TUNNEL);
	route = &scratch->route;
	reason = route_find(skb, &tunnel->ends.local, &tunnel->ends.remote, 0,
			    route);
	if (!reason && !route->ifindex)
		reason = REASON_NO_ROUTE;
	if (!reason)
		reason = tunnel_packet_length(skb, &scratch->packet, &length);
	if (reason)
		return decision_drop(scratch, reason);
	most = tunnel_most(&scratch->packet, path, route,
			   gre_overhead(tunnel, network) +
				   sizeof(struct frame));
	scratch->decision.tunnel = id;
	if (length > most)
		return decision_refuse(scratch, REASON_TOO_BIG, most);
	return tunnel->flags & (TUNNEL_CSUM | TUNNEL_SEQ) && !detoured ?
		       ACTION_DETOUR :
		       ACTION_ENCAPSULATE;
}

/* Whether the tunnel carries the network with the id. */
static __always_inline bool
tunnel_has_network(__u32 tunnel, __u32 id, const struct network *network)
{
	bool keyed = network->flags & NETWORK_KEYED;
	struct tunnel_network_key key = {
		.tunnel = tunnel,
		.key = keyed ? network->key : 0,
		.keyed = keyed,
	};
	const __u32 *found = bpf_map_lookup_elem(&carried, &key);

	return found && *found == id;
}

/* Decides about a frame, or a packet of the tunnel, after its detour. */
static __always_inline enum action
tunnel_decide_detoured(struct __sk_buff *skb, struct scratch *scratch,
		       __u32 mark, const struct network *network)
{
	__u32 mask = (1 << TUNNEL_MARK_NETWORK) - 1;
	const struct packet *pkt = &scratch->packet;
	__u32 tunnel = mark & mask;
	enum reason reason;

	if ((mark & TUNNEL_MARK_KIND) == TUNNEL_MARK_PACKET) {
		reason = route_find(skb, &pkt->src, &pkt->dst, 0,
				    &scratch->route);
		if (!reason && !scratch->route.ifindex)
			reason = REASON_NO_ROUTE;
		return reason ? decision_drop(scratch, reason) : ACTION_SEND;
	}
	/* The network or the tunnel may have gone during the detour. */
	if (!network ||
	    !tunnel_has_network(tunnel, scratch->decision.network, network))
		return decision_drop(scratch, REASON_UNKNOWN_TUNNEL);
	return tunnel_decide(skb, network, tunnel, true);
}

/* The part of our packet that an ICMP error quotes. */
struct tunnel_quote4 {
	struct iphdr ip;
	struct gre_base gre;
};
_Static_assert(sizeof(struct tunnel_quote4) == 24, "struct tunnel_quote4");

struct tunnel_quote6 {
	struct ipv6hdr ip;
	struct gre_base gre;
};
_Static_assert(sizeof(struct tunnel_quote6) == 44, "struct tunnel_quote6");

/* Whether the tunnel sends packets of the network with these GRE flags, and
 * with DF if they are IPv4. */
static __always_inline bool
tunnel_sends(__u32 id, __u32 network_id, __be16 flags)
{
	const struct network *network =
		bpf_map_lookup_elem(&networks, &network_id);
	const struct tunnel *tunnel = bpf_map_lookup_elem(&tunnels, &id);

	return network && tunnel && flags == gre_flags(tunnel, network) &&
	       (!address_is_ipv4(&tunnel->ends.remote) ||
		!(tunnel->flags & TUNNEL_FRAGMENTABLE));
}

/*
 * Reads an ICMP error from outside. If it reports that a packet in a tunnel was
 * too big, lowers the tunnel's MTU for a while. The error must quote a packet
 * that the tunnel sends: with its ends, a key, the fields of its GRE header,
 * and DF if it is IPv4. RFC 5927 recommends such checks for TCP.
 */
static __noinline void
tunnel_note_mtu(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 at = pkt->l4 + sizeof(struct icmp), mtu, lowered, network;
	struct tunnel_ends ends = {};
	struct tunnel_quote6 quote6;
	struct tunnel_quote4 quote4;
	struct tunnel_path *path;
	struct gre_base gre;
	__be32 rest;
	__u32 id;
	__u8 code;

	if (bpf_skb_load_bytes(skb, pkt->l4 + offsetof(struct icmp, code),
			       &code, sizeof(code)) ||
	    bpf_skb_load_bytes(skb, at - sizeof(rest), &rest, sizeof(rest)))
		return;
	if (address_is_ipv4(&pkt->dst)) {
		if (pkt->icmp_type != ICMP_UNREACHABLE ||
		    code != ICMP_FRAG_NEEDED ||
		    bpf_skb_load_bytes(skb, at, &quote4, sizeof(quote4)) ||
		    quote4.ip.protocol != IPPROTO_GRE || quote4.ip.ihl != 5 ||
		    quote4.ip.frag_off != bpf_htons(IP_DF))
			return;
		ends.local = address_from_ipv4(quote4.ip.saddr);
		ends.remote = address_from_ipv4(quote4.ip.daddr);
		gre = quote4.gre;
		at += sizeof(quote4.ip);
		mtu = bpf_ntohl(rest) & 0xffff;
	} else {
		if (pkt->icmp_type != ICMP6_TOO_BIG ||
		    bpf_skb_load_bytes(skb, at, &quote6, sizeof(quote6)) ||
		    quote6.ip.nexthdr != IPPROTO_GRE)
			return;
		__builtin_memcpy(&ends.local, &quote6.ip.saddr,
				 sizeof(ends.local));
		__builtin_memcpy(&ends.remote, &quote6.ip.daddr,
				 sizeof(ends.remote));
		gre = quote6.gre;
		at += sizeof(quote6.ip);
		mtu = bpf_ntohl(rest);
		if (mtu < TUNNEL_LEAST6) /* RFC 8201, 4 */
			return;
	}
	if (!mtu || !tunnel_find(&ends.local, &ends.remote, &id) ||
	    !address_equal(&pkt->dst, &ends.local) ||
	    gre.protocol != bpf_htons(ETH_P_TEB) ||
	    gre_find_network(skb, id, at, &gre, &network) ||
	    !tunnel_sends(id, network, gre.flags))
		return;
	path = bpf_map_lookup_elem(&tunnel_paths, &id);
	if (!path || dry_run)
		return;
	lowered = tunnel_lowered_mtu(path);
	if (lowered && lowered <= mtu)
		return;
	path->mtu = mtu;
	path->lowered = bpf_ktime_get_coarse_ns();
}

#endif
