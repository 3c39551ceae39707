/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers ARP and ND for addresses in the tables, so that they are not flooded
 * and cannot be forged. An answer leaves by the device that the question came
 * in by.
 */
#ifndef EBPNET_NEIGH_H
#define EBPNET_NEIGH_H

#include "arp.h"
#include "csum.h"
#include "decision.h"
#include "guard_role.h"
#include "maps.h"
#include "neighbor.h"

/* RFC 4861, section 4.4: solicited, override. */
#define ND_FLAG_SOLICITED 0x40
#define ND_FLAG_OVERRIDE  0x20

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

/* Turns an ARP request into its answer, which has @mac. */
static __noinline enum reason
neigh_answer_arp(struct __sk_buff *skb, const struct packet *pkt,
		 const struct mac *mac)
{
	struct {
		struct frame frame;
		struct arp arp;
	} answer;
	__u8 target[4];

	_Static_assert(sizeof(answer) == 42, "ARP answer");
	if (bpf_skb_load_bytes(skb, pkt->l3, &answer.arp, sizeof(answer.arp)))
		return REASON_KERNEL_ERROR;
	answer.frame = (struct frame){ answer.arp.sender_mac, *mac,
				       bpf_htons(ETH_P_ARP) };
	answer.arp.operation = bpf_htons(ARP_REPLY);
	answer.arp.target_mac = answer.arp.sender_mac;
	answer.arp.sender_mac = *mac;
	__builtin_memcpy(target, answer.arp.target, sizeof(target));
	__builtin_memcpy(answer.arp.target, answer.arp.sender, sizeof(target));
	__builtin_memcpy(answer.arp.sender, target, sizeof(target));
	if (bpf_skb_store_bytes(skb, 0, &answer, sizeof(answer), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Turns a neighbor solicitation into its advertisement, which has @mac. The
 * answer to "::", which looks for duplicates, goes to all nodes. */
static __noinline enum reason
neigh_answer_nd(struct __sk_buff *skb, const struct packet *pkt,
		const struct mac *mac)
{
	struct {
		struct mac dst;
		struct mac src;
	} eth = { pkt->src_mac, *mac };
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
		.dst = pkt->src,
	};
	struct nd_advert advert = {
		.type = ND_ADVERT,
		.flags = ND_FLAG_SOLICITED | ND_FLAG_OVERRIDE,
		.option = ND_TARGET_MAC,
		.option_length = 1,
		.mac = *mac,
	};
	const __u32 l4 = sizeof(struct ethhdr) + sizeof(ip6);
	__s64 sum;

	_Static_assert(sizeof(ip6) == sizeof(struct ipv6hdr), "IPv6 header");
	if (bpf_skb_load_bytes(skb, pkt->l4 + ND_TARGET_AT, &advert.target,
			       sizeof(advert.target)))
		return REASON_KERNEL_ERROR;
	ip6.src = advert.target;
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

/* Answers the question for the station with @mac. */
static __always_inline enum reason
neigh_answer(struct __sk_buff *skb, const struct packet *pkt,
	     const struct mac *mac)
{
	return pkt->ethertype == bpf_htons(ETH_P_ARP) ?
		       neigh_answer_arp(skb, pkt, mac) :
		       neigh_answer_nd(skb, pkt, mac);
}

/* Decides to answer a question, if the tables have its @station. */
static __always_inline enum action
neigh_decide_for(struct scratch *scratch, const struct station *station)
{
	if (!station)
		return ACTION_UNDECIDED;
	scratch->decision.mac = station->mac;
	return ACTION_ANSWER;
}

static __noinline enum action
neigh_decide_arp(struct __sk_buff *skb, struct scratch *scratch, __u32 network)
{
	struct address target;
	struct arp arp;

	if (bpf_skb_load_bytes(skb, scratch->packet.l3, &arp, sizeof(arp)) ||
	    !arp_is_valid(&arp))
		return decision_drop(scratch, REASON_MALFORMED);
	if (arp.operation != bpf_htons(ARP_REQUEST))
		return ACTION_UNDECIDED;
	target = address_from_ipv4(arp_address(arp.target));
	return neigh_decide_for(scratch, neigh_lookup(network, &arp.sender_mac,
						      &target));
}

static __noinline enum action
neigh_decide_nd(struct __sk_buff *skb, struct scratch *scratch, __u32 network)
{
	const struct packet *pkt = &scratch->packet;
	struct address target;

	if (pkt->ttl != ND_HOP_LIMIT ||
	    bpf_skb_load_bytes(skb, pkt->l4 + ND_TARGET_AT, &target,
			       sizeof(target)))
		return ACTION_UNDECIDED;
	return neigh_decide_for(scratch,
				neigh_lookup(network, &pkt->src_mac, &target));
}

/* Decides about a question in ARP or ND from @network (NETWORK_OUTSIDE: from
 * the host, which may ask about every network); ACTION_UNDECIDED if it is no
 * question, or one that the tables cannot answer. After parse_l4() if it is
 * IPv6. */
static __always_inline enum action
neigh_decide(struct __sk_buff *skb, struct scratch *scratch, __u32 network)
{
	if (scratch->packet.ethertype == bpf_htons(ETH_P_ARP))
		return neigh_decide_arp(skb, scratch, network);
	if (scratch->packet.icmp_type == ND_SOLICIT)
		return neigh_decide_nd(skb, scratch, network);
	return ACTION_UNDECIDED;
}

/* The static station that a question in ARP or ND asks for; NULL if there is
 * none, or if the packet is no question. After parse_l4() if it is IPv6. */
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
		   bpf_skb_load_bytes(skb, pkt->l4 + ND_TARGET_AT, &target,
				      sizeof(target))) {
		return NULL;
	}
	return bpf_map_lookup_elem(&neighbors, &target);
}

#endif
