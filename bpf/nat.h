/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Address translation: a packet that comes in with the key of one side of its
 * flow goes out with the reversed key of the other side. masquerade.h and
 * publish.h choose the two keys of a new flow.
 */
#ifndef EBPNET_NAT_H
#define EBPNET_NAT_H

#include "crc32c.h"
#include "csum.h"
#include "flow.h"

enum nat_side {
	NAT_SOURCE,
	NAT_DESTINATION,
};

/* The offset of a packet's source or destination address. */
static __always_inline __u32 nat_address_at(const struct packet *pkt,
					    enum nat_side side)
{
	if (address_is_ipv4(&pkt->dst))
		return pkt->l3 + (side == NAT_SOURCE ?
					  offsetof(struct iphdr, saddr) :
					  offsetof(struct iphdr, daddr));
	return pkt->l3 + (side == NAT_SOURCE ? offsetof(struct ipv6hdr, saddr) :
					       offsetof(struct ipv6hdr, daddr));
}

/*
 * Writes @new over an address of the packet. @check_at is the offset of the
 * transport checksum, or 0 if none covers the addresses. @flags are those of
 * ctx_mend_l4().
 */
static __always_inline bool
nat_write_address(ctx_t *ctx, const struct packet *pkt, enum nat_side side,
		  const struct address *old, const struct address *new,
		  __u32 check_at, __u64 flags)
{
	__u32 at = nat_address_at(pkt, side);
	__s64 diff;

	flags |= BPF_F_PSEUDO_HDR;
	if (address_is_ipv4(old))
		return (!check_at ||
			!ctx_mend_l4(ctx, check_at, old->word[3], new->word[3],
				     flags | sizeof(__be32))) &&
		       !ctx_mend_l3(ctx,
				    pkt->l3 + offsetof(struct iphdr, check),
				    old->word[3], new->word[3],
				    sizeof(__be32)) &&
		       !ctx_store(ctx, at, &new->word[3], sizeof(__be32), 0);

	if (!check_at)
		return !ctx_store(ctx, at, new, sizeof(*new),
				  BPF_F_RECOMPUTE_CSUM);
	diff = bpf_csum_diff((__be32 *)old, sizeof(*old), (__be32 *)new,
			     sizeof(*new), 0);
	if (ctx_mend_l4(ctx, check_at, 0, diff, flags) ||
	    ctx_store(ctx, at, new, sizeof(*new), 0))
		return false;
	/* A device's sum of the whole packet, if there is one, stays the same:
	 * the changes of the address and of the transport checksum cancel out.
	 * ctx_mend_l4() assumes IPv4 and adds only the change of the transport
	 * checksum, so add the change of the address here. This fails if there
	 * is no such sum. */
	ctx_add_csum(ctx, diff);
	return true;
}

/* The fields that a translation changes in TCP and UDP over IPv4 without
 * options, from the TTL on. */
struct nat_ipv4 {
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
};
_Static_assert(sizeof(struct nat_ipv4) == 16, "struct nat_ipv4");

/* Whether the fields of a struct nat_ipv4 are contiguous in the packet. */
static __always_inline bool nat_ipv4_is_contiguous(const struct packet *pkt)
{
	return (pkt->protocol == IPPROTO_TCP || pkt->protocol == IPPROTO_UDP) &&
	       pkt->fragment != FRAGMENT_LATER && address_is_ipv4(&pkt->dst) &&
	       pkt->l4 == pkt->l3 + sizeof(struct iphdr);
}

/* Writes an address and a port over those of the packet with one store, and
 * updates the checksums. @check_at and @flags are as for nat_write_address().
 */
static __always_inline bool
nat_write_ipv4(ctx_t *ctx, const struct packet *pkt, enum nat_side side,
	       __be32 address, __be16 port, __u32 check_at, __u64 flags)
{
	__u32 at = pkt->l3 + offsetof(struct iphdr, ttl);
	struct nat_ipv4 fields;
	__be32 old_address;
	__be16 old_port;

	if (ctx_load(ctx, at, &fields, sizeof(fields)))
		return false;
	if (side == NAT_SOURCE) {
		old_address = fields.src;
		old_port = fields.sport;
		fields.src = address;
		fields.sport = port;
	} else {
		old_address = fields.dst;
		old_port = fields.dport;
		fields.dst = address;
		fields.dport = port;
	}
	fields.check =
		csum_update(fields.check, (__u64)address + (__u32)~old_address);
	/* Two updates: as long as a device has yet to complete the checksum,
	 * the field covers the addresses, but not the ports. */
	return (old_address == address ||
		!ctx_mend_l4(ctx, check_at, old_address, address,
			     flags | BPF_F_PSEUDO_HDR | sizeof(address))) &&
	       (old_port == port || !ctx_mend_l4(ctx, check_at, old_port, port,
						 flags | sizeof(port))) &&
	       !ctx_store(ctx, at, &fields, sizeof(fields),
			  pkt->flags & PACKET_UNSUMMED ? BPF_F_RECOMPUTE_CSUM :
							 0);
}

/* Writes another port over one of an SCTP packet's, and updates its CRC32c. */
static __noinline enum reason
nat_write_sctp(ctx_t *ctx, const struct packet *pkt, enum nat_side side,
	       __be16 port)
{
	__u32 before, after, crc, at = pkt->l4;
	__u32 length = pkt->length - (at - pkt->l3);

	/* The CRC covers the whole datagram, and only the last fragment tells
	 * its length. */
	if (pkt->fragment)
		return REASON_FRAGMENT;
	if (ctx_load(ctx, at, &before, sizeof(before)) ||
	    ctx_store(ctx, at + (side == NAT_SOURCE ? 0 : 2), &port,
		      sizeof(port), BPF_F_RECOMPUTE_CSUM) ||
	    ctx_load(ctx, at, &after, sizeof(after)) ||
	    ctx_load(ctx, at + offsetof(struct sctp, checksum), &crc,
		     sizeof(crc)))
		return REASON_MALFORMED;
	/* A device fills it in later. */
	if (!crc)
		return REASON_NONE;
	crc ^= crc32c_change(before ^ after, length);
	if (ctx_store(ctx, at + offsetof(struct sctp, checksum), &crc,
		      sizeof(crc), BPF_F_RECOMPUTE_CSUM))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Writes @address and @port over the packet's source or destination, and
 * updates the checksums. A later fragment has only the address. */
__verified_once enum reason
nat_write(ctx_t *ctx, struct packet *pkt, enum nat_side side,
	  const struct address *address, __be16 port)
{
	__u32 check_at = 0, covers_address = 0, port_at;
	enum reason reason = REASON_NONE;
	struct address *old;
	__be16 *old_port;
	__u64 flags = 0;

	if (!pkt || !address)
		return REASON_KERNEL_ERROR;
	old = side == NAT_SOURCE ? &pkt->src : &pkt->dst;
	old_port = side == NAT_SOURCE ? &pkt->sport : &pkt->dport;
	port_at = pkt->l4 + (side == NAT_SOURCE ? 0 : 2);
	switch (pkt->protocol) {
	case IPPROTO_TCP:
		check_at = pkt->l4 + offsetof(struct tcphdr, check);
		covers_address = check_at;
		break;
	case IPPROTO_UDP:
		check_at = pkt->l4 + offsetof(struct udphdr, check);
		covers_address = check_at;
		flags = BPF_F_MARK_MANGLED_0;
		break;
	case IPPROTO_ICMPV6:
		covers_address = pkt->l4 + offsetof(struct icmp, checksum);
		/* fall through */
	case IPPROTO_ICMP:
		check_at = pkt->l4 + offsetof(struct icmp, checksum);
		port_at = pkt->l4 + offsetof(struct icmp, id);
		break;
	}
	if (pkt->fragment == FRAGMENT_LATER)
		covers_address = 0;

	if (nat_ipv4_is_contiguous(pkt)) {
		if (!nat_write_ipv4(ctx, pkt, side, address->word[3], port,
				    check_at, flags))
			return REASON_KERNEL_ERROR;
		*old = *address;
		*old_port = port;
		return REASON_NONE;
	}
	if (!address_equal(old, address) &&
	    !nat_write_address(ctx, pkt, side, old, address, covers_address,
			       flags))
		return REASON_KERNEL_ERROR;
	if (*old_port != port && pkt->fragment != FRAGMENT_LATER) {
		if (pkt->protocol == IPPROTO_SCTP)
			reason = nat_write_sctp(ctx, pkt, side, port);
		else if (ctx_mend_l4(ctx, check_at, *old_port, port,
				     flags | sizeof(port)) ||
			 ctx_store(ctx, port_at, &port, sizeof(port),
				   pkt->flags & PACKET_UNSUMMED ?
					   BPF_F_RECOMPUTE_CSUM :
					   0))
			reason = REASON_KERNEL_ERROR;
	}
	*old = *address;
	*old_port = port;
	return reason;
}

/* Translates the packet for the side that sends with key @to. */
static __always_inline enum reason
nat_translate(ctx_t *ctx, struct packet *pkt, const struct flow_key *to)
{
	enum reason reason = REASON_NONE;

	if (pkt->sport != to->dport || !address_equal(&pkt->src, &to->dst))
		reason = nat_write(ctx, pkt, NAT_SOURCE, &to->dst, to->dport);
	if (!reason &&
	    (pkt->dport != to->sport || !address_equal(&pkt->dst, &to->src)))
		reason = nat_write(ctx, pkt, NAT_DESTINATION, &to->src,
				   to->sport);
	return reason;
}

#endif
