/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Properties of a packet, from the fields that parse.h has read. */
#ifndef EBPNET_PACKET_H
#define EBPNET_PACKET_H

#include "parse.h"

/* The segment size of a superframe whose segments have different sizes: SCTP's,
 * in the kernel's skbuff.h. */
#define GSO_BY_FRAGS 0xffff

/* The length of the IP packet; of a superframe of TCP or UDP, the length of its
 * longest segment. 0 if the length is unknown. After parse_l4(). */
static __always_inline __u32 packet_length(const ctx_t *ctx,
					   const struct packet *pkt)
{
	__u32 headers = pkt->l4_length ? pkt->l4_length : sizeof(struct udphdr);

	if (pkt->flags & PACKET_JUMBO) /* no segment has the option */
		headers -= JUMBO_LENGTH;
	if (!ctx_segment_size(ctx))
		return ctx_length(ctx) - pkt->l3;
	if (ctx_segment_size(ctx) == GSO_BY_FRAGS)
		return 0;
	return pkt->l4 - pkt->l3 + headers + ctx_segment_size(ctx);
}

/* Whether packets of this protocol have ports. */
static __always_inline bool packet_has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ||
	       protocol == IPPROTO_SCTP;
}

static __always_inline bool packet_is_icmp(const struct packet *pkt)
{
	return pkt->protocol == IPPROTO_ICMP || pkt->protocol == IPPROTO_ICMPV6;
}

/* Whether the packet is an ICMP error or the first fragment of one; after
 * parse_l4(). Receivers also act on ICMPv6 errors of types that they do not
 * know: RFC 4443, 2.4 a. */
static __always_inline bool packet_starts_icmp_error(const struct packet *pkt)
{
	if (pkt->fragment == FRAGMENT_LATER)
		return false;
	if (pkt->protocol == IPPROTO_ICMP)
		return address_is_ipv4(&pkt->dst) &&
		       (pkt->icmp_type == ICMP_UNREACHABLE ||
			pkt->icmp_type == ICMP_TIME_EXCEEDED ||
			pkt->icmp_type == ICMP_PARAMETER_PROBLEM);
	return pkt->protocol == IPPROTO_ICMPV6 && !address_is_ipv4(&pkt->dst) &&
	       pkt->icmp_type < ICMP6_ECHO_REQUEST;
}

/* Whether the packet is a whole ICMP error of a known type, which can be
 * translated; after parse_l4(). */
static __always_inline bool packet_is_icmp_error(const struct packet *pkt)
{
	return !pkt->fragment && packet_starts_icmp_error(pkt) &&
	       (pkt->protocol == IPPROTO_ICMP ||
		(pkt->icmp_type >= ICMP6_UNREACHABLE &&
		 pkt->icmp_type <= ICMP6_PARAMETER_PROBLEM));
}

#endif
