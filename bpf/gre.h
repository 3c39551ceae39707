/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ethernet in GRE (RFC 2784, 2890; protocol 0x6558) over IPv4 and IPv6: 4 bytes
 * of GRE, and 4 more for each of checksum, key and sequence number.
 */
#ifndef EBPNET_GRE_H
#define EBPNET_GRE_H

#include "ctx_sum.h"
#include "parse.h"
#include "tunnel_find.h"

/*
 * The header. A field that its flag does not announce is left out, and those
 * behind it move up. RFC 2784, RFC 2890:
 *
 *     0               16              31
 *    +-+-+-+-+-------+---------------+
 *    |C|0|K|S|  zero |   protocol    |  always
 *    +-+-+-+-+-------+---------------+
 *    |   checksum    |     zero      |  C: GRE_FLAG_CSUM
 *    +---------------+---------------+
 *    |              key              |  K: GRE_FLAG_KEY
 *    +-------------------------------+
 *    |        sequence number        |  S: GRE_FLAG_SEQ
 *    +-------------------------------+
 */
#define GRE_FLAG_CSUM bpf_htons(0x8000)
#define GRE_FLAG_KEY  bpf_htons(0x2000)
#define GRE_FLAG_SEQ  bpf_htons(0x1000)

/* The start of a GRE header, in front of the optional fields. */
struct gre_base {
	__be16 flags;
	__be16 protocol;
};
_Static_assert(sizeof(struct gre_base) == 4, "struct gre_base");

static __always_inline __u32 gre_length(__be16 flags)
{
	__u32 length = sizeof(struct gre_base);

	if (flags & GRE_FLAG_CSUM)
		length += sizeof(__be32);
	if (flags & GRE_FLAG_KEY)
		length += sizeof(__be32);
	if (flags & GRE_FLAG_SEQ)
		length += sizeof(__be32);
	return length;
}

static __always_inline __be16 gre_flags(const struct tunnel *tunnel,
					const struct network *network)
{
	__be16 flags = 0;

	if (tunnel->flags & TUNNEL_CSUM)
		flags |= GRE_FLAG_CSUM;
	if (network->flags & NETWORK_KEYED)
		flags |= GRE_FLAG_KEY;
	if (tunnel->flags & TUNNEL_SEQ)
		flags |= GRE_FLAG_SEQ;
	return flags;
}

/* The bytes that encapsulation adds to a frame: the outer headers behind
 * Ethernet's. */
static __always_inline __u32 gre_overhead(const struct tunnel *tunnel,
					  const struct network *network)
{
	return (address_is_ipv4(&tunnel->ends.remote) ?
			sizeof(struct iphdr) :
			sizeof(struct ipv6hdr)) +
	       gre_length(gre_flags(tunnel, network));
}

/* Finds the network that the GRE header at @offset is of in a tunnel. */
static __always_inline enum reason
gre_find_network(ctx_t *ctx, __u32 tunnel, __u32 offset,
		 const struct gre_base *gre, __u32 *network)
{
	struct tunnel_network_key key = { .tunnel = tunnel };
	__u32 *found;

	if (gre->flags & GRE_FLAG_KEY) {
		offset += gre_length(gre->flags & GRE_FLAG_CSUM);
		if (ctx_load(ctx, offset, &key.key, sizeof(key.key)))
			return REASON_BAD_GRE;
		key.keyed = 1;
	}
	found = bpf_map_lookup_elem(&carried, &key);
	if (!found)
		return REASON_UNKNOWN_KEY;
	*network = *found;
	return REASON_NONE;
}

/* Reads the outer headers of a GRE packet to this host, after parse_l4(). */
static __noinline enum reason
gre_identify(ctx_t *ctx, const struct packet *pkt, struct tunnel_origin *origin)
{
	__u32 offset = pkt->l4, id;
	struct gre_base gre = {};
	enum reason reason;
	__sum16 checksum;

	if (!tunnel_find(&pkt->dst, &pkt->src, &id)) {
		/* Other GRE may be for the host. */
		if (pkt->fragment || ctx_load(ctx, offset, &gre, sizeof(gre)) ||
		    gre.protocol != bpf_htons(ETH_P_TEB))
			return REASON_NONE;
		return tunnel_claims(&pkt->dst) ? REASON_UNKNOWN_TUNNEL :
						  REASON_NONE;
	}
	origin->tunnel = id;
	origin->outer = pkt->ethertype;
	origin->tos = pkt->tos;
	if (pkt->fragment)
		return REASON_FRAGMENT;
	if (ctx_load(ctx, offset, &gre, sizeof(gre)) ||
	    gre.flags & ~(GRE_FLAG_CSUM | GRE_FLAG_KEY | GRE_FLAG_SEQ) ||
	    gre.protocol != bpf_htons(ETH_P_TEB))
		return REASON_BAD_GRE;
	reason = gre_find_network(ctx, origin->tunnel, offset, &gre,
				  &origin->network);
	if (reason)
		return reason;
	/* The packets of a superframe had the right checksums; the superframe
	 * has none. */
	if (gre.flags & GRE_FLAG_CSUM && !ctx_segment_size(ctx) &&
	    (!ctx_sum_checksum(ctx, offset, pkt->l3 + pkt->length - offset,
			       &checksum) ||
	     checksum))
		return REASON_BAD_GRE_CHECKSUM;
	origin->inner = offset + gre_length(gre.flags);
	return REASON_NONE;
}

#endif
