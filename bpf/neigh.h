/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers ARP and ND for addresses in the tables, so that they are not flooded
 * and cannot be forged. An answer leaves by the device that the question came
 * in by.
 */
#ifndef EBPNET_NEIGH_H
#define EBPNET_NEIGH_H

#include "csum.h"
#include "guard.h"
#include "maps.h"
#include "neighbor.h"

/* RFC 4861, section 4.4: solicited, override. */
#define ND_FLAG_SOLICITED    0x40
#define ND_FLAG_OVERRIDE     0x20
#define ND_OPTION_TARGET_MAC 2

struct nd_advert {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__u8 flags;
	__u8 reserved[3];
	struct address target;
	__u8 option;
	__u8 option_length;
	struct mac mac;
};
_Static_assert(sizeof(struct nd_advert) == 32, "struct nd_advert");

/* The station with @address on @network; NULL if the tables do not answer a
 * question of @asker about it. A question about the asker's own address gets no
 * answer. */
static __always_inline const struct station *
neigh_lookup(__u32 network, const struct mac *asker,
	     const struct address *address)
{
	const struct station *station =
		network == NETWORK_OUTSIDE ?
			neighbor_lookup(address) :
			bpf_map_lookup_elem(&neighbors, address);

	if (!station || mac_equal(&station->mac, asker))
		return NULL;
	if (network != NETWORK_OUTSIDE && station->network != network)
		return NULL;
	return station;
}

/* Writes the answer over an ARP request. */
static __always_inline enum reason
neigh_answer_arp(struct __sk_buff *skb, const struct arp *request,
		 const struct station *station)
{
	struct {
		struct frame frame;
		struct arp arp;
	} answer = {
		.frame = { request->sender_mac, station->mac,
			   bpf_htons(ETH_P_ARP) },
		.arp = *request,
	};
	_Static_assert(sizeof(answer) == 42, "ARP answer");

	answer.arp.operation = bpf_htons(ARP_REPLY);
	answer.arp.sender_mac = station->mac;
	answer.arp.target_mac = request->sender_mac;
	__builtin_memcpy(answer.arp.sender, request->target, 4);
	__builtin_memcpy(answer.arp.target, request->sender, 4);
	if (bpf_skb_store_bytes(skb, 0, &answer, sizeof(answer), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Writes the advertisement over a neighbor solicitation for @target. A question
 * from "::" looks for duplicates; its answer goes to all nodes. */
static __always_inline enum reason
neigh_answer_nd(struct __sk_buff *skb, const struct packet *pkt,
		const struct address *target, const struct station *station)
{
	struct {
		struct mac dst;
		struct mac src;
	} eth = { pkt->src_mac, station->mac };
	struct {
		__be32 version;
		__be16 length;
		__u8 protocol;
		__u8 hop_limit;
		struct address src;
		struct address dst;
	} ip6 = {
		.version = bpf_htonl(6U << 28),
		.length = bpf_htons(sizeof(struct nd_advert)),
		.protocol = IPPROTO_ICMPV6,
		.hop_limit = ND_HOP_LIMIT,
		.src = *target,
		.dst = pkt->src,
	};
	struct nd_advert advert = {
		.type = ND_ADVERT,
		.flags = ND_FLAG_SOLICITED | ND_FLAG_OVERRIDE,
		.target = *target,
		.option = ND_OPTION_TARGET_MAC,
		.option_length = 1,
		.mac = station->mac,
	};
	const __u32 l4 = sizeof(struct ethhdr) + sizeof(ip6);
	__s64 sum;

	_Static_assert(sizeof(ip6) == sizeof(struct ipv6hdr), "IPv6 header");
	if (address_is_zero(&pkt->src)) {
		eth.dst = (struct mac){ { 0x33, 0x33, 0, 0, 0, 1 } };
		ip6.dst = (struct address){ { bpf_htonl(0xff020000), 0, 0,
					      bpf_htonl(1) } };
		advert.flags = ND_FLAG_OVERRIDE;
	}
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip6.src, 2 * sizeof(ip6.src),
			    bpf_htonl(sizeof(advert) + IPPROTO_ICMPV6));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&advert, sizeof(advert), sum);
	advert.checksum = csum_fold(sum);

	if (bpf_skb_change_tail(skb, l4 + sizeof(advert), 0) ||
	    bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &ip6, sizeof(ip6),
				BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, l4, &advert, sizeof(advert),
				BPF_F_RECOMPUTE_CSUM))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

enum neigh_result {
	NEIGH_NOT_ASKED, /* no question, or one that the tables cannot answer */
	NEIGH_ANSWERED, /* the packet is now the answer */
	NEIGH_MALFORMED,
	NEIGH_FAILED,
};

/* Answers a question from @network (NETWORK_OUTSIDE: from the host, which may
 * ask about every network). */
static __noinline enum neigh_result
neigh_arp(struct __sk_buff *skb, __u32 network, const struct packet *pkt)
{
	const struct station *station;
	struct address target;
	struct arp arp;

	if (bpf_skb_load_bytes(skb, pkt->l3, &arp, sizeof(arp)) ||
	    !arp_is_valid(&arp))
		return NEIGH_MALFORMED;
	if (arp.operation != bpf_htons(ARP_REQUEST))
		return NEIGH_NOT_ASKED;
	target = address_from_ipv4(arp_address(arp.target));
	station = neigh_lookup(network, &arp.sender_mac, &target);
	if (!station)
		return NEIGH_NOT_ASKED;
	return neigh_answer_arp(skb, &arp, station) ? NEIGH_FAILED :
						      NEIGH_ANSWERED;
}

static __noinline enum neigh_result
neigh_nd(struct __sk_buff *skb, __u32 network, const struct packet *pkt)
{
	const struct station *station;
	struct address target;

	if (pkt->icmp_type != ND_SOLICIT || pkt->ttl != ND_HOP_LIMIT ||
	    bpf_skb_load_bytes(skb, pkt->l4 + 8, &target, sizeof(target)))
		return NEIGH_NOT_ASKED;
	station = neigh_lookup(network, &pkt->src_mac, &target);
	if (!station)
		return NEIGH_NOT_ASKED;
	return neigh_answer_nd(skb, pkt, &target, station) ? NEIGH_FAILED :
							     NEIGH_ANSWERED;
}

/* Answers a question in ARP or ND; after parse_l4() if it is IPv6. */
static __always_inline enum neigh_result
neigh_answer(struct __sk_buff *skb, __u32 network, const struct packet *pkt)
{
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return neigh_arp(skb, network, pkt);
	if (pkt->icmp_type == ND_SOLICIT)
		return neigh_nd(skb, network, pkt);
	return NEIGH_NOT_ASKED;
}

/* The static station that a question in ARP or ND asks for; NULL if the packet
 * is no question, or asks for another address. After parse_l4() if it is IPv6.
 * */
static __noinline const struct station *
neigh_find_asked(struct __sk_buff *skb, const struct packet *pkt)
{
	struct address target;
	struct arp arp;

	if (pkt->ethertype == bpf_htons(ETH_P_ARP)) {
		if (bpf_skb_load_bytes(skb, pkt->l3, &arp, sizeof(arp)) ||
		    arp.operation != bpf_htons(ARP_REQUEST))
			return NULL;
		/* A sender that asks for its own address asks nobody: RFC
		 * 5227, 3. */
		if (arp_address(arp.sender) == arp_address(arp.target))
			return NULL;
		target = address_from_ipv4(arp_address(arp.target));
	} else if (pkt->icmp_type != ND_SOLICIT ||
		   bpf_skb_load_bytes(skb, pkt->l4 + 8, &target,
				      sizeof(target))) {
		return NULL;
	}
	return bpf_map_lookup_elem(&neighbors, &target);
}

#endif
