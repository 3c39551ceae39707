/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ethernet in GRE with a key (RFC 2784, 2890; protocol 0x6558) over IPv4:
 * 20 + 8 + 14 = 42 bytes in front of the inner packet.
 */
#ifndef EBPNET_GRE_H
#define EBPNET_GRE_H

#include "csum.h"
#include "route.h"

#define GRE_FLAG_KEY bpf_htons(0x2000)
#define GRE_TTL	     64

struct gre {
	__be16 flags;
	__be16 protocol;
	__be32 key;
};
_Static_assert(sizeof(struct gre) == 8, "struct gre");

struct gre_headers {
	struct iphdr ip;
	struct gre gre;
};
_Static_assert(sizeof(struct gre_headers) == 28, "struct gre_headers");

/* What encapsulation adds to a packet: the outer headers and the inner frame's
 * own, which the kernel does not count in a packet's length otherwise. */
#define GRE_OVERHEAD (sizeof(struct gre_headers) + sizeof(struct frame))

static __always_inline __sum16 gre_ip_checksum(const struct iphdr *ip)
{
	const __u16 *word = (const __u16 *)ip;
	__u32 sum = 0;

	for (unsigned long i = 0; i < sizeof(*ip) / sizeof(*word); i++)
		sum += word[i];
	return csum_fold(sum);
}

/* Wraps the frame for @tunnel. The outer Ethernet header is left to
 * route_send(). Superframes stay whole: the kernel learns of the new headers
 * and cuts them where the device needs it. */
static __always_inline enum reason
gre_encap(struct __sk_buff *skb, const struct packet *pkt,
	  const struct tunnel *tunnel, __be32 key)
{
	struct gre_headers headers = {
		.ip = {
			.version = 4,
			.ihl = 5,
			.tot_len = bpf_htons(skb->len + sizeof(headers)),
			.frag_off = bpf_htons(0x4000),
			.ttl = GRE_TTL,
			.protocol = IPPROTO_GRE,
			.saddr = tunnel->local.word[3],
			.daddr = tunnel->remote.word[3],
		},
		.gre = {
			.flags = GRE_FLAG_KEY,
			.protocol = bpf_htons(ETH_P_TEB),
			.key = key,
		},
	};
	struct frame inner = { pkt->dst_mac, pkt->src_mac, pkt->ethertype };
	__be16 outer = bpf_htons(ETH_P_IP);

	headers.ip.check = gre_ip_checksum(&headers.ip);

	if (bpf_skb_adjust_room(
		    skb, GRE_OVERHEAD, BPF_ADJ_ROOM_MAC,
		    BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
			    BPF_F_ADJ_ROOM_ENCAP_L4_GRE |
			    BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) |
			    BPF_F_ADJ_ROOM_ENCAP_L2_ETH) ||
	    bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &outer,
				sizeof(outer), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &headers,
				sizeof(headers), BPF_F_INVALIDATE_HASH) ||
	    bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + sizeof(headers),
				&inner, sizeof(inner), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* A frame that came out of a tunnel. */
struct gre_origin {
	__u32 tunnel; /* 0: not ours, leave it to the host */
	__u32 network;
	__u32 inner; /* offset of the inner Ethernet header */
};

/* Reads the outer headers of a GRE packet to this host. */
static __noinline enum reason
gre_identify(struct __sk_buff *skb, const struct packet *pkt,
	     struct gre_origin *origin)
{
	struct tunnel ends = { .local = pkt->dst, .remote = pkt->src };
	struct gre gre = {};
	__u8 version_ihl;
	__u32 *id, *network, offset;

	if (!address_is_ipv4(&pkt->dst) ||
	    bpf_skb_load_bytes(skb, pkt->l3, &version_ihl, 1))
		return REASON_NONE;
	offset = pkt->l3 + (version_ihl & 0x0f) * 4;

	id = bpf_map_lookup_elem(&tunnel_ids, &ends);
	if (!id) {
		/* Other GRE than ours may well be the host's. */
		if (pkt->fragment || bpf_skb_load_bytes(skb, offset, &gre, 4) ||
		    gre.protocol != bpf_htons(ETH_P_TEB))
			return REASON_NONE;
		__builtin_memset(&ends.remote, 0, sizeof(ends.remote));
		if (bpf_map_lookup_elem(&tunnel_ids, &ends))
			return REASON_UNKNOWN_TUNNEL;
		return REASON_NONE;
	}
	origin->tunnel = *id;
	if (pkt->fragment)
		return REASON_FRAGMENT;
	if (bpf_skb_load_bytes(skb, offset, &gre, sizeof(gre)) ||
	    gre.flags != GRE_FLAG_KEY || gre.protocol != bpf_htons(ETH_P_TEB))
		return REASON_BAD_GRE;
	network = bpf_map_lookup_elem(&network_keys, &gre.key);
	if (!network)
		return REASON_UNKNOWN_KEY;
	origin->network = *network;
	origin->inner = offset + sizeof(gre);
	return REASON_NONE;
}

/* Takes off everything in front of the inner frame that @pkt was read from. */
static __noinline enum reason
gre_decap(struct __sk_buff *skb, struct packet *pkt, __u32 inner)
{
	struct frame frame = { pkt->dst_mac, pkt->src_mac, pkt->ethertype };
	__u64 flags = pkt->ethertype == bpf_htons(ETH_P_IP) ? decap_ipv4_flags :
							      decap_ipv6_flags;

	if (bpf_skb_adjust_room(skb, -(__s32)inner, BPF_ADJ_ROOM_MAC,
				flags | BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame),
				BPF_F_INVALIDATE_HASH))
		return REASON_KERNEL_ERROR;
	pkt->l3 -= inner;
	if (pkt->l4)
		pkt->l4 -= inner;
	return REASON_NONE;
}

#endif
