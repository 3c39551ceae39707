/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The source guard: an endpoint may use only its own MAC and addresses in
 * Ethernet, IP, ARP and ND. It may act as a router or a DHCP server only if it
 * has that role.
 */
#ifndef EBPNET_GUARD_H
#define EBPNET_GUARD_H

#include "arp.h"
#include "ctx_sum.h"
#include "guard_role.h"
#include "parse.h"

/* A sender of 0.0.0.0 is a probe: RFC 5227. */
static __always_inline enum reason
guard_arp(ctx_t *ctx, const struct device *device, const struct packet *pkt)
{
	struct arp arp;
	__be32 sender;

	if (ctx_load(ctx, pkt->l3, &arp, sizeof(arp)) || !arp_is_valid(&arp))
		return REASON_MALFORMED;
	sender = arp_address(arp.sender);
	if (!mac_equal(&arp.sender_mac, &device->mac))
		return REASON_SPOOFED_MAC;
	if (sender && sender != device->ipv4.word[3])
		return REASON_SPOOFED_ADDRESS;
	return REASON_NONE;
}

/* Whether the checksum of the IPv4 header is right. The kernel's own forwarding
 * checks this too. Translation only updates the checksum by the change of the
 * addresses, so a wrong one would stay wrong. */
static __always_inline bool
guard_ipv4_is_summed(ctx_t *ctx, const struct packet *pkt)
{
	const __u32 *word = ctx_data(ctx) + sizeof(struct ethhdr);
	__sum16 checksum;
	__u64 sum = 0;

	if (pkt->l3_length > sizeof(struct iphdr)) /* options */
		return ctx_sum_checksum(ctx, pkt->l3, pkt->l3_length,
					&checksum) &&
		       !checksum;
	if ((void *)word + sizeof(struct iphdr) > ctx_end(ctx))
		return false;
	for (unsigned long i = 0; i < sizeof(struct iphdr) / sizeof(*word); i++)
		sum += word[i];
	return !csum_fold((sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32));
}

/* A DHCP client without an address sends from 0.0.0.0: RFC 2131. */
static __always_inline enum reason
guard_ipv4(ctx_t *ctx, const struct device *device, struct packet *pkt)
{
	enum reason reason;

	if (address_equal(&pkt->src, &device->ipv4))
		return guard_role_check(ctx, pkt, device->allow);
	if (pkt->src.word[3] ||
	    pkt->dst.word[3] != bpf_htonl(INADDR_BROADCAST) ||
	    pkt->protocol != IPPROTO_UDP)
		return REASON_SPOOFED_ADDRESS;
	reason = parse_l4(ctx, pkt);
	if (reason)
		return reason;
	if (pkt->sport != bpf_htons(DHCP_CLIENT_PORT) ||
	    pkt->dport != bpf_htons(DHCP_SERVER_PORT))
		return REASON_SPOOFED_ADDRESS;
	return guard_role_check(ctx, pkt, device->allow);
}

static __always_inline bool
guard_is_own_ipv6(const struct device *device, const struct address *address)
{
	struct address link_local;

	if (address_equal(address, &device->ipv6))
		return !address_is_zero(address);
	link_local = address_link_local(&device->mac);
	return address_equal(address, &link_local);
}

/* After guard_role_check(), of IPv6. */
static __always_inline bool guard_is_advert(const struct packet *pkt)
{
	return pkt->protocol == IPPROTO_ICMPV6 && pkt->icmp_type == ND_ADVERT;
}

/* After guard_role_check(), of IPv6. */
static __always_inline bool guard_has_options(const struct packet *pkt)
{
	return pkt->protocol == IPPROTO_ICMPV6 &&
	       (pkt->icmp_type == ND_SOLICIT || pkt->icmp_type == ND_ADVERT);
}

/* An option of neighbor discovery that holds a MAC: RFC 4861, 4.6.1. */
struct nd_option {
	__u8 kind;
	__u8 length; /* in units of 8 bytes */
	struct mac mac;
};
_Static_assert(sizeof(struct nd_option) == 8, "struct nd_option");

#define ND_OPTIONS_AT 24 /* the code of solicitations and advertisements */
#define ND_OPTIONS    8 /* more options than any sender has */

/* The MAC in a solicitation or an advertisement must be its sender's. Otherwise
 * receivers would send the sender's packets to another MAC. */
static __noinline enum reason
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

/* A neighbor advertisement must be about an address of its sender. */
static __noinline enum reason
guard_nd(ctx_t *ctx, const struct device *device, const struct packet *pkt)
{
	struct address target;

	if (ctx_load(ctx, pkt->l4 + ND_TARGET_AT, &target, sizeof(target)))
		return REASON_MALFORMED;
	if (!guard_is_own_ipv6(device, &target))
		return REASON_SPOOFED_ADDRESS;
	return REASON_NONE;
}

static __always_inline bool guard_may_be_unspecified(const struct packet *pkt)
{
	switch (pkt->icmp_type) {
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
	case ND_ROUTER_SOLICIT:
	case ND_SOLICIT:
		return mac_is_multicast(&pkt->dst_mac);
	}
	return false;
}

static __always_inline enum reason
guard_ipv6(ctx_t *ctx, const struct device *device, struct packet *pkt)
{
	enum reason reason;

	reason = guard_role_check(ctx, pkt, device->allow);
	if (!reason && guard_has_options(pkt))
		reason = guard_nd_options(ctx, pkt);
	if (!reason && guard_is_advert(pkt))
		reason = guard_nd(ctx, device, pkt);
	if (reason)
		return reason;
	if (guard_is_own_ipv6(device, &pkt->src))
		return REASON_NONE;
	if (address_is_zero(&pkt->src) && pkt->protocol == IPPROTO_ICMPV6 &&
	    guard_may_be_unspecified(pkt))
		return REASON_NONE;
	return REASON_SPOOFED_ADDRESS;
}

#endif
