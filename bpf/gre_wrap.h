/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Wraps frames in GRE in a socket buffer, and unwraps them. */
#ifndef EBPNET_GRE_WRAP_H
#define EBPNET_GRE_WRAP_H

#include <linux/errno.h>

#include "ctx_sum.h"
#include "ecn.h"
#include "gre.h"

/* The longest packet that an IP header can describe. */
#define GRE_LONGEST 0xffff

/* The result of wrapping a frame. */
enum gre_result {
	GRE_WRAPPED,
	GRE_WRAPPED_OPAQUE, /* the kernel does not know the outer headers */
	GRE_TO_BE_SEGMENTED, /* a superframe that cannot be wrapped whole, or
			      * would have more than 64 KB */
	GRE_FAILED,
};

/*
 * Makes room in front of the packet for the outer headers and the inner
 * Ethernet header. Superframes stay whole: the kernel knows the new headers,
 * and segments the superframe if the device needs it. It does not know the
 * headers of ARP, or of a packet that it already takes for encapsulated: a
 * container's own tunnel, or (at least up to 6.18) a packet that the host
 * forwards out of a tunnel.
 */
static __always_inline enum gre_result
gre_make_room(struct __sk_buff *skb, const struct packet *pkt, __u32 room,
	      bool ipv4)
{
	long err = -EALREADY;

	if (pkt->ethertype != bpf_htons(ETH_P_ARP))
		err = bpf_skb_adjust_room(
			skb, room, BPF_ADJ_ROOM_MAC,
			BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_GRE |
				BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) |
				BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
				(ipv4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 :
					BPF_F_ADJ_ROOM_ENCAP_L3_IPV6));
	if (!err)
		return GRE_WRAPPED;
	if (skb->gso_size)
		return GRE_TO_BE_SEGMENTED;
	if (err != -EALREADY)
		return GRE_FAILED;
	return bpf_skb_change_head(skb, room, 0) ? GRE_FAILED :
						   GRE_WRAPPED_OPAQUE;
}

static __always_inline void
gre_write_ipv4(struct iphdr *ip, const struct tunnel *tunnel, __u8 tos,
	       __u32 length)
{
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = tos,
		.tot_len = bpf_htons(sizeof(*ip) + length),
		.frag_off = bpf_htons(IP_DF),
		.ttl = tunnel->ttl,
		.protocol = IPPROTO_GRE,
		.saddr = tunnel->ends.local.word[3],
		.daddr = tunnel->ends.remote.word[3],
	};
	if (tunnel->flags & TUNNEL_FRAGMENTABLE) {
		ip->frag_off = 0;
		ip->id = bpf_get_prandom_u32();
	}
	ip->check =
		csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

#define GRE_LABEL_BITS 20

/* The outer flow label, by which routers of the underlay distribute flows. It
 * is the same for all packets of an inner flow, and never zero (RFC 6438). */
static __always_inline __u32 gre_flow_label(struct __sk_buff *skb)
{
	__u32 hash = bpf_get_hash_recalc(skb);

	hash = (hash ^ hash >> GRE_LABEL_BITS) & ((1 << GRE_LABEL_BITS) - 1);
	return hash ? hash : 1;
}

static __always_inline void
gre_write_ipv6(struct ipv6hdr *ip, const struct tunnel *tunnel, __u8 tos,
	       __u32 length, __u32 label)
{
	*ip = (struct ipv6hdr){
		.version = 6,
		.priority = tos >> 4,
		.flow_lbl = { tos << 4 | label >> 16, label >> 8, label },
		.payload_len = bpf_htons(length),
		.nexthdr = IPPROTO_GRE,
		.hop_limit = tunnel->ttl,
	};
	__builtin_memcpy(&ip->saddr, &tunnel->ends.local, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &tunnel->ends.remote, sizeof(ip->daddr));
}

/* The headers in front of a packet in a tunnel, without those of variable
 * length: the fields of GRE, and the inner Ethernet header behind them. */
struct gre_headers4 {
	__u8 pad[2]; /* not sent; aligns the rest */
	struct ethhdr eth; /* route_send() fills it in */
	struct iphdr ip;
	struct gre_base gre;
};
_Static_assert(sizeof(struct gre_headers4) == 40, "struct gre_headers4");

struct gre_headers6 {
	__u8 pad[2];
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct gre_base gre;
};
_Static_assert(sizeof(struct gre_headers6) == 60, "struct gre_headers6");

#define GRE_PAD	       2
#define GRE_MAX_FIELDS 3
_Static_assert(sizeof(struct gre_headers6) + GRE_MAX_FIELDS * sizeof(__be32) +
			       sizeof(struct frame) <=
		       PIECE_SIZE,
	       "room in struct scratch");

/* Writes the headers to @buffer; @length is the length behind the outer IP
 * header. Returns the offset of the fields of GRE. */
static __always_inline __u32 gre_write_headers(struct __sk_buff *skb,
					       __u8 *buffer,
					       const struct tunnel *tunnel,
					       struct gre_base gre, __u8 tos,
					       __u32 length)
{
	struct gre_headers4 *four = (void *)buffer;
	struct gre_headers6 *six = (void *)buffer;

	if (address_is_ipv4(&tunnel->ends.remote)) {
		four->eth = (struct ethhdr){ .h_proto = bpf_htons(ETH_P_IP) };
		gre_write_ipv4(&four->ip, tunnel, tos, length);
		four->gre = gre;
		return sizeof(*four);
	}
	six->eth = (struct ethhdr){ .h_proto = bpf_htons(ETH_P_IPV6) };
	gre_write_ipv6(&six->ip, tunnel, tos, length, gre_flow_label(skb));
	six->gre = gre;
	return sizeof(*six);
}

/* Wraps the frame for @tunnel, with @sequence if it sends numbers. route_send()
 * fills in the outer Ethernet header, gre_put_checksum() the checksum. */
static __noinline enum gre_result
gre_encap(struct __sk_buff *skb, struct scratch *scratch,
	  const struct tunnel *tunnel, const struct network *network,
	  __u32 sequence)
{
	const struct packet *pkt = &scratch->packet;
	struct gre_base gre = { gre_flags(tunnel, network),
				bpf_htons(ETH_P_TEB) };
	__u32 length = skb->len + gre_length(gre.flags), end;
	__u8 tos = ecn_encapsulate(pkt->tos);
	enum gre_result result;
	struct frame *inner;
	__u8 *buffer;

	if (length > GRE_LONGEST - sizeof(struct iphdr))
		return skb->gso_size ? GRE_TO_BE_SEGMENTED : GRE_FAILED;
	if (tunnel->flags & TUNNEL_COPY_DSCP)
		tos |= pkt->tos & ~ECN_MASK;
	buffer = scratch->piece;
	end = gre_write_headers(skb, buffer, tunnel, gre, tos, length);
	if (gre.flags & GRE_FLAG_CSUM) {
		/* Zero until gre_put_checksum(), which includes this field in
		 * its sum. */
		*(__be32 *)(buffer + end) = 0;
		end += sizeof(__be32);
	}
	if (gre.flags & GRE_FLAG_KEY) {
		*(__be32 *)(buffer + end) = network->key;
		end += sizeof(__be32);
	}
	if (gre.flags & GRE_FLAG_SEQ) {
		*(__be32 *)(buffer + end) = bpf_htonl(sequence);
		end += sizeof(__be32);
	}
	inner = (void *)(buffer + end);
	*inner = (struct frame){ pkt->dst_mac, pkt->src_mac, pkt->ethertype };
	end += sizeof(*inner) - GRE_PAD;

	result = gre_make_room(skb, pkt, end - sizeof(struct ethhdr),
			       address_is_ipv4(&tunnel->ends.remote));
	if (result <= GRE_WRAPPED_OPAQUE &&
	    bpf_skb_store_bytes(skb, 0, buffer + GRE_PAD, end,
				BPF_F_INVALIDATE_HASH))
		return GRE_FAILED;
	return result;
}

/* Writes the checksum, if the tunnel has one. */
static __noinline enum reason
gre_put_checksum(struct __sk_buff *skb, const struct tunnel *tunnel)
{
	__u32 at =
		sizeof(struct ethhdr) + (address_is_ipv4(&tunnel->ends.remote) ?
						 sizeof(struct iphdr) :
						 sizeof(struct ipv6hdr));
	__sum16 checksum;

	if (!(tunnel->flags & TUNNEL_CSUM))
		return REASON_NONE;
	if (!ctx_sum_checksum(skb, at, skb->len - at, &checksum) ||
	    bpf_skb_store_bytes(skb, at + sizeof(struct gre_base), &checksum,
				sizeof(checksum), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* The shortest packet, with an Ethernet header, that the kernel allows after
 * decapsulation: before 6.3 it leaves as many bytes as the outer IP header has.
 * ARP has the minimum length of Ethernet. */
static __always_inline __u32
gre_least_length(const struct packet *pkt, const struct tunnel_origin *origin)
{
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return ETH_ZLEN;
	return origin->outer == bpf_htons(ETH_P_IPV6) && !decap_ipv4_flags ?
		       ETH_HLEN + sizeof(struct ipv6hdr) :
		       0;
}

/* Removes the outer headers in front of the inner frame of @pkt. */
static __noinline enum reason
gre_decap(struct __sk_buff *skb, struct packet *pkt,
	  const struct tunnel_origin *origin)
{
	struct frame frame = { pkt->dst_mac, pkt->src_mac, pkt->ethertype };
	__u32 least = origin->inner + gre_least_length(pkt, origin);
	__u64 flags = pkt->ethertype == bpf_htons(ETH_P_IPV6) ?
			      decap_ipv6_flags :
			      decap_ipv4_flags;

	if (skb->len < least && bpf_skb_change_tail(skb, least, 0))
		return REASON_KERNEL_ERROR;
	if (bpf_skb_adjust_room(skb, -(__s32)origin->inner, BPF_ADJ_ROOM_MAC,
				flags | BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame),
				BPF_F_INVALIDATE_HASH))
		return REASON_KERNEL_ERROR;
	pkt->l3 -= origin->inner;
	if (pkt->l4)
		pkt->l4 -= origin->inner;
	return REASON_NONE;
}

#endif
