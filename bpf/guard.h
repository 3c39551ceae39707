/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The source guard: an endpoint may use only its own MAC and addresses in
 * Ethernet, IP, ARP and ND. It may act as a router or a DHCP server only if it
 * has that role.
 */
#ifndef EBPNET_GUARD_H
#define EBPNET_GUARD_H

#include "ctx_sum.h"
#include "guard_neigh.h"
#include "parse.h"

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
	if (!reason && guard_is_nd(pkt))
		reason = guard_nd(ctx, pkt, device, NULL);
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
