/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors that the datapath sends itself. */
#ifndef EBPNET_ICMP_REPLY_H
#define EBPNET_ICMP_REPLY_H

#include "config.h"
#include "csum.h"
#include "ctx_sum.h"
#include "maps.h"
#include "parse.h"
#include "scratch.h"

/* An error that the datapath sends. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 mtu; /* IPv4: of the next hop, or 0; IPv6 has it in 32 bits */
};

/* An endpoint gets as many errors a second, and at once, as Linux sends by
 * default (icmp_msgs_per_sec, icmp_msgs_burst): RFC 1812, 4.3.2.8. */
#define ICMP_INTERVAL (SECONDS / 1000)
#define ICMP_BURST    (50 * ICMP_INTERVAL)

static __always_inline bool icmp_may_send(__u32 endpoint)
{
	__u64 now = bpf_ktime_get_ns(), *due;

	due = bpf_map_lookup_elem(&icmp_budgets, &endpoint);
	if (!due)
		return false;
	if (*due < now)
		*due = now;
	else if (*due - now >= ICMP_BURST)
		return false;
	*due += ICMP_INTERVAL;
	return true;
}

struct icmp4_headers {
	struct iphdr ip;
	struct icmp icmp;
};
_Static_assert(sizeof(struct icmp4_headers) == 28, "struct icmp4_headers");

struct icmp6_headers {
	struct ipv6hdr ip;
	struct icmp icmp;
};
_Static_assert(sizeof(struct icmp6_headers) == 48, "struct icmp6_headers");

#define ICMP_TTL 64

/* An error has at most this length, and quotes what fits: RFC 1812, 4.3.2.3;
 * RFC 4443, 2.4 (c). */
#define ICMP_LONGEST4 576
#define ICMP_LONGEST6 1280

/* The offset of an error's headers: behind the Ethernet header. */
#define ICMP_AT sizeof(struct ethhdr)

static __always_inline bool
icmp_write_ipv4(struct __sk_buff *skb, const struct packet *pkt,
		const struct address *from, const struct icmp_error *error,
		__u8 tos, __u32 length, __s64 sum)
{
	struct icmp4_headers headers = {
		.ip = {
			.version = 4,
			.ihl = 5,
			.tos = tos,
			.tot_len = bpf_htons(sizeof(headers) + length),
			.ttl = ICMP_TTL,
			.protocol = IPPROTO_ICMP,
			.saddr = from->word[3],
			.daddr = pkt->src.word[3],
		},
		.icmp = {
			.type = error->type,
			.code = error->code,
			.sequence = error->mtu,
		},
	};

	headers.ip.check = csum_fold(bpf_csum_diff(
		NULL, 0, (__be32 *)&headers.ip, sizeof(headers.ip), 0));
	headers.icmp.checksum = csum_fold(bpf_csum_diff(
		NULL, 0, (__be32 *)&headers.icmp, sizeof(headers.icmp), sum));
	return !bpf_skb_store_bytes(skb, ICMP_AT, &headers, sizeof(headers),
				    BPF_F_RECOMPUTE_CSUM);
}

static __always_inline bool
icmp_write_ipv6(struct __sk_buff *skb, const struct packet *pkt,
		const struct address *from, const struct icmp_error *error,
		__u8 tos, __u32 length, __s64 sum)
{
	__be32 pseudo[2] = { bpf_htonl(sizeof(struct icmp) + length),
			     bpf_htonl(IPPROTO_ICMPV6) };
	struct icmp6_headers headers = {
		.ip = {
			.version = 6,
			.priority = tos >> 4,
			.flow_lbl = { tos << 4 },
			.payload_len = bpf_htons(sizeof(struct icmp) + length),
			.nexthdr = IPPROTO_ICMPV6,
			.hop_limit = ICMP_TTL,
		},
		.icmp = {
			.type = error->type,
			.code = error->code,
			.sequence = error->mtu,
		},
	};

	__builtin_memcpy(&headers.ip.saddr, from, sizeof(*from));
	__builtin_memcpy(&headers.ip.daddr, &pkt->src, sizeof(pkt->src));
	sum = csum_pseudo(from, &pkt->src, sum);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	headers.icmp.checksum = csum_fold(bpf_csum_diff(
		NULL, 0, (__be32 *)&headers.icmp, sizeof(headers.icmp), sum));
	return !bpf_skb_store_bytes(skb, ICMP_AT, &headers, sizeof(headers),
				    BPF_F_RECOMPUTE_CSUM);
}

/* No error answers an error, or a packet without a transport header. */
static __always_inline bool icmp_is_unanswerable(const struct packet *pkt)
{
	return address_is_unspecified(&pkt->src) ||
	       address_is_group(&pkt->dst) || pkt->fragment == FRAGMENT_LATER ||
	       ((pkt->protocol == IPPROTO_ICMP ||
		 pkt->protocol == IPPROTO_ICMPV6) &&
		!pkt->echo);
}

/*
 * Turns the packet into an error about itself, to its sender and from the
 * gateway at @from; false if no error may be sent (RFC 1122, 3.2.2; RFC 4443,
 * 2.4). The packet must be unchanged: the quoted bytes stay in place, and the
 * headers go in front.
 */
__verified_once bool
icmp_reply(struct __sk_buff *skb, const struct packet *pkt, __u32 endpoint,
	   const struct address *from, const struct icmp_error *error)
{
	__u32 room = sizeof(struct icmp4_headers), most = ICMP_LONGEST4, length;
	struct mac macs[2];
	__sum16 checksum;
	bool ipv4;

	if (!pkt || !from || !error || icmp_is_unanswerable(pkt) ||
	    !icmp_may_send(endpoint))
		return false;
	ipv4 = address_is_ipv4(&pkt->src);
	if (!ipv4) {
		room = sizeof(struct icmp6_headers);
		most = ICMP_LONGEST6;
	}
	length = pkt->length;
	if (skb->gso_size || length > skb->len - pkt->l3)
		length = skb->len - pkt->l3;
	if (length > most - room)
		length = most - room;
	macs[0] = pkt->src_mac;
	macs[1] = config_gateway_mac();
	if (bpf_skb_change_tail(skb, ICMP_AT + length, 0) ||
	    bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) ||
	    !ctx_sum_checksum(skb, ICMP_AT + room, length, &checksum) ||
	    bpf_skb_store_bytes(skb, 0, macs, sizeof(macs),
				BPF_F_INVALIDATE_HASH))
		return false;
	/* The precedence of the packet that the error is about: RFC 1812,
	 * 4.3.2.5. */
	return ipv4 ? icmp_write_ipv4(skb, pkt, from, error, pkt->tos, length,
				      (__u16)~checksum) :
		      icmp_write_ipv6(skb, pkt, from, error, pkt->tos, length,
				      (__u16)~checksum);
}

/* The error that tells a sender for which @reason its packet is dropped. False
 * if there is none. @mtu is what would fit. */
static __always_inline bool icmp_error_of(bool ipv4, enum reason reason,
					  __u32 mtu, struct icmp_error *error)
{
	*error = (struct icmp_error){};
	switch (reason) {
	case REASON_TTL_EXCEEDED:
		error->type = ipv4 ? ICMP_TIME_EXCEEDED : ICMP6_TIME_EXCEEDED;
		return true;
	case REASON_TOO_BIG:
		error->type = ipv4 ? ICMP_UNREACHABLE : ICMP6_TOO_BIG;
		error->code = ipv4 ? ICMP_FRAG_NEEDED : 0;
		error->mtu = bpf_htons(mtu);
		return true;
	default:
		return false;
	}
}

#endif
