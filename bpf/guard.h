/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The source guard: an endpoint speaks with its own MAC and addresses only,
 * in Ethernet, IP, ARP and ND, and never as a router.
 */
#ifndef EBPNET_GUARD_H
#define EBPNET_GUARD_H

#include "ctx_sum.h"
#include "parse.h"

/* RFC 4861, 2710, 3810: the ICMPv6 messages that come from "::", and those
 * that only a router may send. */
enum icmpv6_type {
	MLD_QUERY = 130,
	MLD_REPORT = 131,
	MLD_DONE = 132,
	ND_ROUTER_SOLICIT = 133,
	ND_ROUTER_ADVERT = 134,
	ND_SOLICIT = 135,
	ND_ADVERT = 136,
	ND_REDIRECT = 137,
	MLD2_REPORT = 143,
};

#define ARP_ETHERNET 1 /* RFC 826 */
#define ARP_REQUEST  1
#define ARP_REPLY    2

#define ND_HOP_LIMIT 255 /* RFC 4861: from the same link */

#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68

/* The whole of an ARP packet for IPv4 over Ethernet: RFC 826. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	struct mac sender_mac;
	__u8 sender[4];
	struct mac target_mac;
	__u8 target[4];
};
_Static_assert(sizeof(struct arp) == 28, "struct arp");

static __always_inline __be32 arp_address(const __u8 *bytes)
{
	__be32 address;

	__builtin_memcpy(&address, bytes, sizeof(address));
	return address;
}

static __always_inline bool arp_is_valid(const struct arp *arp)
{
	return arp->hardware == bpf_htons(ARP_ETHERNET) &&
	       arp->protocol == bpf_htons(ETH_P_IP) &&
	       arp->hardware_length == ETH_ALEN && arp->protocol_length == 4;
}

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

/* Whether the checksum of the IPv4 header is right: the kernel's own forwarding
 * looks at it, and translation only mends it by what has changed. */
static __always_inline bool
guard_ipv4_is_summed(ctx_t *ctx, const struct packet *pkt)
{
	const __u32 *word = ctx_data(ctx) + sizeof(struct ethhdr);
	__sum16 checksum;
	__u64 sum = 0;

	if (pkt->l3_length > sizeof(struct iphdr)) /* options */
		return ctx_checksum(ctx, pkt->l3, pkt->l3_length, &checksum) &&
		       !checksum;
	if ((void *)word + sizeof(struct iphdr) > ctx_end(ctx))
		return false;
	for (unsigned long i = 0; i < sizeof(struct iphdr) / sizeof(*word); i++)
		sum += word[i];
	return !csum_fold((sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32));
}

/* DHCP asks from 0.0.0.0 for an address: RFC 2131. */
static __always_inline enum reason
guard_ipv4(ctx_t *ctx, const struct device *device, struct packet *pkt)
{
	enum reason reason;

	if (address_equal(&pkt->src, &device->ipv4))
		return REASON_NONE;
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
	return REASON_NONE;
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

/* What an endpoint may not say in ICMPv6, whatever its source address. */
static __noinline enum reason
guard_nd(ctx_t *ctx, const struct device *device, const struct packet *pkt)
{
	struct address target;

	switch (pkt->icmp_type) {
	case MLD_QUERY:
	case ND_ROUTER_ADVERT:
	case ND_REDIRECT:
		return device->allow & ALLOW_ROUTER ? REASON_NONE :
						      REASON_ROGUE_ROUTER;
	case ND_ADVERT:
		if (ctx_load(ctx, pkt->l4 + 8, &target, sizeof(target)))
			return REASON_MALFORMED;
		if (!guard_is_own_ipv6(device, &target))
			return REASON_SPOOFED_ADDRESS;
	}
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

	/* TCP and UDP, the common case, end here with one comparison. */
	if (pkt->protocol != IPPROTO_TCP && pkt->protocol != IPPROTO_UDP) {
		reason = parse_l4(ctx, pkt);
		if (!reason && pkt->protocol == IPPROTO_ICMPV6) {
			/* Such a fragment may hide what guard_nd() looks for:
			 * RFC 6980. */
			if (pkt->fragment && pkt->ttl == ND_HOP_LIMIT)
				return REASON_FRAGMENT;
			reason = guard_nd(ctx, device, pkt);
		}
		if (reason)
			return reason;
	}
	if (guard_is_own_ipv6(device, &pkt->src))
		return REASON_NONE;
	if (address_is_zero(&pkt->src) && pkt->protocol == IPPROTO_ICMPV6 &&
	    guard_may_be_unspecified(pkt))
		return REASON_NONE;
	return REASON_SPOOFED_ADDRESS;
}

#endif
