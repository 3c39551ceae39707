/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The part of the source guard that checks ARP and ND: a sender may tell others
 * only its own MAC and its own addresses. guard_source.h describes @device and
 * @source.
 */
#ifndef EBPNET_GUARD_NEIGH_H
#define EBPNET_GUARD_NEIGH_H

#include "arp.h"
#include "guard_role.h"
#include "guard_source.h"

/* Checks the sender in an ARP packet. A probe has the sender address 0.0.0.0:
 * RFC 5227. */
__verified_once enum reason
guard_arp(ctx_t *ctx, const struct packet *pkt, const struct device *device,
	  const struct shared_source *source)
{
	struct address sender;
	struct arp arp;

	if (!pkt)
		return REASON_KERNEL_ERROR;
	if (ctx_load(ctx, pkt->l3, &arp, sizeof(arp)) || !arp_is_valid(&arp))
		return REASON_MALFORMED;
	if (!mac_equal(&arp.sender_mac, &pkt->src_mac))
		return REASON_SPOOFED_MAC;
	sender = address_from_ipv4(arp_address(arp.sender));
	if (!address_is_unspecified(&sender) &&
	    !guard_may_use(device, source, &pkt->src_mac, &sender))
		return REASON_SPOOFED_ADDRESS;
	return REASON_NONE;
}

/* An option of neighbor discovery that holds a MAC: RFC 4861, 4.6.1. */
struct nd_option {
	__u8 kind;
	__u8 length; /* in units of 8 bytes */
	struct mac mac;
};
_Static_assert(sizeof(struct nd_option) == 8, "struct nd_option");

#define ND_OPTIONS_AT 24 /* in solicitations and advertisements */
#define ND_OPTIONS    8 /* more options than any sender has */

/* The MAC in a solicitation or an advertisement must be its sender's. Otherwise
 * receivers would send the sender's packets to another MAC. */
static __always_inline enum reason
guard_nd_options(ctx_t *ctx, const struct packet *pkt)
{
	__u32 end = pkt->l3 + pkt->length;
	__u32 at = pkt->l4 + ND_OPTIONS_AT;
	struct nd_option option;

	for (int i = 0; i < ND_OPTIONS && at + sizeof(option) <= end; i++) {
		if (ctx_load(ctx, at, &option, sizeof(option)) ||
		    !option.length)
			return REASON_MALFORMED;
		if ((option.kind == ND_SOURCE_MAC ||
		     option.kind == ND_TARGET_MAC) &&
		    !mac_equal(&option.mac, &pkt->src_mac))
			return REASON_SPOOFED_MAC;
		at += option.length * sizeof(option);
	}
	return at + sizeof(option) <= end ? REASON_MALFORMED : REASON_NONE;
}

/* Whether the packet is a solicitation or an advertisement. After
 * guard_role_check(). */
static __always_inline bool guard_is_nd(const struct packet *pkt)
{
	return pkt->protocol == IPPROTO_ICMPV6 &&
	       pkt->ethertype == bpf_htons(ETH_P_IPV6) &&
	       (pkt->icmp_type == ND_SOLICIT || pkt->icmp_type == ND_ADVERT);
}

/* Checks a solicitation or an advertisement. An advertisement must be about an
 * IPv6 address of its sender. */
__verified_once enum reason
guard_nd(ctx_t *ctx, const struct packet *pkt, const struct device *device,
	 const struct shared_source *source)
{
	struct address target;
	enum reason reason;

	if (!pkt)
		return REASON_KERNEL_ERROR;
	reason = guard_nd_options(ctx, pkt);
	if (reason || pkt->icmp_type != ND_ADVERT)
		return reason;
	if (ctx_load(ctx, pkt->l4 + ND_TARGET_AT, &target, sizeof(target)))
		return REASON_MALFORMED;
	/* A mapped address would match the IPv4 address. */
	if (address_is_ipv4(&target) ||
	    !guard_may_use(device, source, &pkt->src_mac, &target))
		return REASON_SPOOFED_ADDRESS;
	return REASON_NONE;
}

#endif
