/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The part of the source guard that checks types of messages: only an endpoint
 * that has the role of a router or of a DHCP server may send the messages of
 * that role.
 */
#ifndef EBPNET_GUARD_ROLE_H
#define EBPNET_GUARD_ROLE_H

#include "parse.h"

/* RFC 792, RFC 1256. */
#define ICMP_REDIRECT	   5
#define ICMP_ROUTER_ADVERT 9

/* RFC 3376 (all versions of a query), RFC 4286. */
#define IGMP_QUERY	   0x11
#define IGMP_ROUTER_ADVERT 0x30
#define IGMP_ROUTER_END	   0x32

/* RFC 2710, 3810, 4286, 4861: messages about the link itself. */
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
	MLD_ROUTER_ADVERT = 151,
	MLD_ROUTER_SOLICIT = 152,
	MLD_ROUTER_END = 153,
};

#define ND_HOP_LIMIT 255 /* RFC 4861: from the same link */
#define ND_TARGET_AT 8 /* in solicitations and advertisements: RFC 4861, 4.3 */

/* Kinds of options with a MAC: RFC 4861, 4.6.1. */
#define ND_SOURCE_MAC 1
#define ND_TARGET_MAC 2

/* RFC 2131, RFC 8415. */
#define DHCP_SERVER_PORT   67
#define DHCP_CLIENT_PORT   68
#define DHCPV6_CLIENT_PORT 546
#define DHCPV6_SERVER_PORT 547

/* The first byte of a DHCP message: RFC 2131, section 2. */
#define DHCP_REPLY 2

/* The first byte of a DHCPv6 message: RFC 8415, section 7.3. */
enum dhcpv6_type {
	DHCPV6_ADVERTISE = 2,
	DHCPV6_REPLY = 7,
	DHCPV6_RECONFIGURE = 10,
	DHCPV6_RELAY_REPLY = 13,
};

/* The largest offset of a transport header without extension headers. */
#define MAX_L4_OFFSET (MAX_OUTER_LENGTH + sizeof(struct ethhdr) + 60)

/* The length of the shortest headers that are checked: UDP's and ICMP's. */
#define ROLE_HEADER_LENGTH 8

static __always_inline bool guard_role_is_dhcpv6_servers(__u8 type)
{
	return type == DHCPV6_ADVERTISE || type == DHCPV6_REPLY ||
	       type == DHCPV6_RECONFIGURE || type == DHCPV6_RELAY_REPLY;
}

/*
 * Clients accept a server's message from any source port, so the destination
 * port decides too. A relay passes a reply on to clients, so no other endpoint
 * may send one to the port of servers and relays either.
 */
static __always_inline enum reason
guard_role_check_udp(ctx_t *ctx, const struct packet *pkt, bool ipv4)
{
	__be16 server = ipv4 ? bpf_htons(DHCP_SERVER_PORT) :
			       bpf_htons(DHCPV6_SERVER_PORT);
	__be16 client = ipv4 ? bpf_htons(DHCP_CLIENT_PORT) :
			       bpf_htons(DHCPV6_CLIENT_PORT);
	__u8 type;

	if (pkt->sport == server || pkt->dport == client)
		return REASON_ROGUE_SERVER;
	if (pkt->dport != server)
		return REASON_NONE;
	/* The next fragment may hold the type. */
	if (pkt->fragment)
		return REASON_FRAGMENT;
	if (ctx_load(ctx, pkt->l4 + sizeof(struct udphdr), &type, sizeof(type)))
		return REASON_NONE; /* no message at all */
	if (ipv4 ? type == DHCP_REPLY : guard_role_is_dhcpv6_servers(type))
		return REASON_ROGUE_SERVER;
	return REASON_NONE;
}

static __always_inline enum reason
guard_role_check_icmpv6(const struct packet *pkt, enum allow allow)
{
	bool of_link = false, of_router = false;

	switch (pkt->icmp_type) {
	case MLD_QUERY:
	case MLD_ROUTER_ADVERT:
	case MLD_ROUTER_END:
	case ND_ROUTER_ADVERT:
	case ND_REDIRECT:
		of_router = true;
		__attribute__((fallthrough));
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
	case MLD_ROUTER_SOLICIT:
	case ND_ROUTER_SOLICIT:
	case ND_SOLICIT:
	case ND_ADVERT:
		of_link = true;
	}
	/* Receivers ignore such a message in fragments, whoever sends it:
	 * RFC 6980. A later fragment does not say its type. */
	if (pkt->fragment && (of_link || pkt->ttl == ND_HOP_LIMIT))
		return REASON_FRAGMENT;
	return of_router && !(allow & ALLOW_ROUTER) ? REASON_ROGUE_ROUTER :
						      REASON_NONE;
}

/* Reads the type itself: parse_l4() does not know IGMP, and most ICMP is only
 * bridged and needs no more of it. */
static __always_inline enum reason
guard_role_check_router4(ctx_t *ctx, const struct packet *pkt, enum allow allow)
{
	bool of_router;
	__u8 type;

	if (allow & ALLOW_ROUTER)
		return REASON_NONE;
	if (ctx_load(ctx, pkt->l3 + pkt->l3_length, &type, sizeof(type)))
		return REASON_MALFORMED;
	if (pkt->protocol == IPPROTO_ICMP)
		of_router = type == ICMP_REDIRECT || type == ICMP_ROUTER_ADVERT;
	else
		of_router = type == IGMP_QUERY || type == IGMP_ROUTER_ADVERT ||
			    type == IGMP_ROUTER_END;
	return of_router ? REASON_ROGUE_ROUTER : REASON_NONE;
}

/*
 * Checks whether a sender with the roles @allow may send the message. Reads the
 * transport header of IPv6, and of UDP over IPv4. A later fragment of IPv4
 * passes: it has no meaning without the first one.
 */
__verified_once int
guard_role_check_message(ctx_t *ctx, struct packet *pkt, enum allow allow)
{
	enum reason reason;
	bool ipv4;

	if (!pkt)
		return REASON_KERNEL_ERROR;
	ipv4 = pkt->ethertype == bpf_htons(ETH_P_IP);
	if (ipv4 && pkt->fragment == FRAGMENT_LATER)
		return REASON_NONE;
	if (ipv4 &&
	    (pkt->protocol == IPPROTO_ICMP || pkt->protocol == IPPROTO_IGMP))
		return guard_role_check_router4(ctx, pkt, allow);
	if (ipv4 && pkt->protocol != IPPROTO_UDP)
		return REASON_NONE;
	reason = parse_l4(ctx, pkt);
	if (reason)
		return reason;
	/* The padding of a frame is no part of a first fragment: the next
	 * fragment could bring another header in its place. RFC 7112. */
	if (pkt->fragment == FRAGMENT_FIRST &&
	    pkt->length < pkt->l4 - pkt->l3 + ROLE_HEADER_LENGTH)
		return REASON_MALFORMED;
	if (pkt->protocol == IPPROTO_ICMPV6 && !ipv4)
		return guard_role_check_icmpv6(pkt, allow);
	if (pkt->protocol == IPPROTO_UDP && !(allow & ALLOW_DHCP_SERVER))
		return guard_role_check_udp(ctx, pkt, ipv4);
	return REASON_NONE;
}

/* Whether the packet is UDP to and from ports that DHCP does not use, as most
 * of UDP is. Reads the ports in place: a call would add a quarter to the time
 * of a packet on the same host. */
static __always_inline bool
guard_role_is_plain_udp(const ctx_t *ctx, const struct packet *pkt)
{
	__u32 l4 = pkt->l3 + pkt->l3_length;
	const struct udphdr *udp;

	barrier_var(l4);
	if (pkt->protocol != IPPROTO_UDP || pkt->fragment || l4 > MAX_L4_OFFSET)
		return false;
	udp = ctx_data(ctx) + l4;
	if ((void *)(udp + 1) > ctx_end(ctx))
		return false;
	if (pkt->ethertype == bpf_htons(ETH_P_IP))
		return udp->source != bpf_htons(DHCP_SERVER_PORT) &&
		       udp->dest != bpf_htons(DHCP_CLIENT_PORT) &&
		       udp->dest != bpf_htons(DHCP_SERVER_PORT);
	return udp->source != bpf_htons(DHCPV6_SERVER_PORT) &&
	       udp->dest != bpf_htons(DHCPV6_CLIENT_PORT) &&
	       udp->dest != bpf_htons(DHCPV6_SERVER_PORT);
}

/* Checks any IP packet. TCP, the common case, takes one comparison. */
static __always_inline enum reason
guard_role_check(ctx_t *ctx, struct packet *pkt, enum allow allow)
{
	if (pkt->protocol == IPPROTO_TCP || guard_role_is_plain_udp(ctx, pkt))
		return REASON_NONE;
	return guard_role_check_message(ctx, pkt, allow);
}

#endif
