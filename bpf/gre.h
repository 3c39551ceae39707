/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ethernet in GRE (RFC 2784, 2890; protocol 0x6558) over IPv4 and IPv6: 4 bytes
 * of GRE, and 4 more for each of checksum, key and sequence number.
 */
#ifndef EBPNET_GRE_H
#define EBPNET_GRE_H

#include "csum.h"
#include "index.h"
#include "route.h"

#define GRE_FLAG_CSUM bpf_htons(0x8000)
#define GRE_FLAG_KEY  bpf_htons(0x2000)
#define GRE_FLAG_SEQ  bpf_htons(0x1000)

/* What stands in front of the fields that the flags tell of. */
struct gre_base {
	__be16 flags;
	__be16 protocol;
};
_Static_assert(sizeof(struct gre_base) == 4, "struct gre_base");

#define GRE_DONT_FRAGMENT bpf_htons(0x4000)

static __always_inline __u32 gre_length(__be16 flags)
{
	__u32 length = sizeof(struct gre_base);

	if (flags & GRE_FLAG_CSUM)
		length += sizeof(__be32);
	if (flags & GRE_FLAG_KEY)
		length += sizeof(__be32);
	if (flags & GRE_FLAG_SEQ)
		length += sizeof(__be32);
	return length;
}

static __always_inline __be16 gre_flags(const struct tunnel *tunnel,
					const struct network *network)
{
	__be16 flags = 0;

	if (tunnel->flags & TUNNEL_CSUM)
		flags |= GRE_FLAG_CSUM;
	if (network->flags & NETWORK_KEYED)
		flags |= GRE_FLAG_KEY;
	if (tunnel->flags & TUNNEL_SEQ)
		flags |= GRE_FLAG_SEQ;
	return flags;
}

/* What encapsulation adds to a frame: the outer headers behind Ethernet's. */
static __always_inline __u32 gre_overhead(const struct tunnel *tunnel,
					  const struct network *network)
{
	return (address_is_ipv4(&tunnel->ends.remote) ?
			sizeof(struct iphdr) :
			sizeof(struct ipv6hdr)) +
	       gre_length(gre_flags(tunnel, network));
}

/* Whether the tunnel carries the network with the id. */
static __always_inline bool
gre_is_carried(__u32 tunnel, __u32 id, const struct network *network)
{
	bool keyed = network->flags & NETWORK_KEYED;
	struct carried_key key = {
		.tunnel = tunnel,
		.key = keyed ? network->key : 0,
		.keyed = keyed,
	};
	const __u32 *found = bpf_map_lookup_elem(&carried, &key);

	return found && *found == id;
}

/* A part of a packet that is summed up. */
struct gre_sum {
	struct __sk_buff *skb;
	__u32 offset;
	__u32 left;
	__u32 sum;
	__u32 failed; /* bool */
};

static int gre_sum_next(__u32 i, void *context)
{
	struct scratch *scratch = scratch_get();
	struct gre_sum *sum = context;
	__u32 length = sum->left;

	if (!scratch || !length)
		return 1;
	if (length > ICMP_QUOTE)
		length = ICMP_QUOTE;
	/* As it is; but so the verifier sees that it is not 0. */
	barrier_var(length);
	length = ((length - 1) & (ICMP_QUOTE - 1)) + 1;
	__builtin_memset(scratch->quote, 0, sizeof(scratch->quote));
	if (bpf_skb_load_bytes(sum->skb, sum->offset, scratch->quote, length)) {
		sum->failed = 1;
		return 1;
	}
	sum->sum = bpf_csum_diff(NULL, 0, (__be32 *)scratch->quote,
				 sizeof(scratch->quote), sum->sum);
	sum->offset += length;
	sum->left -= length;
	return 0;
}

/* Gives the checksum of @length bytes of the packet from @offset on; false if
 * they are not there. */
static __noinline bool gre_checksum(struct __sk_buff *skb, __u32 offset,
				    __u32 length, __sum16 *checksum)
{
	struct gre_sum sum = { .skb = skb, .offset = offset, .left = length };

	bpf_loop(length / ICMP_QUOTE + 1, gre_sum_next, &sum, 0);
	*checksum = csum_fold(sum.sum);
	return !sum.failed;
}

/* What became of a frame that was to be wrapped. */
enum gre_result {
	GRE_WRAPPED,
	GRE_WRAPPED_UNTOLD, /* the kernel does not know of it */
	GRE_TO_BE_CUT, /* a superframe, which cannot be wrapped whole */
	GRE_FAILED,
};

/*
 * Makes room in front of the packet, into which the outer headers and the
 * inner Ethernet header go. Superframes stay whole: the kernel learns of the
 * new headers and cuts them where the device needs it. It does not for ARP, nor
 * for what it takes to be in other outer headers already: what a container has
 * wrapped itself, and (at least up to 6.18) what it hands on out of a tunnel.
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
		return GRE_TO_BE_CUT;
	if (err != -EALREADY)
		return GRE_FAILED;
	return bpf_skb_change_head(skb, room, 0) ? GRE_FAILED :
						   GRE_WRAPPED_UNTOLD;
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
		.frag_off = GRE_DONT_FRAGMENT,
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

static __always_inline void
gre_write_ipv6(struct ipv6hdr *ip, const struct tunnel *tunnel, __u8 tos,
	       __u32 length)
{
	*ip = (struct ipv6hdr){
		.version = 6,
		.priority = tos >> 4,
		.flow_lbl = { tos << 4 },
		.payload_len = bpf_htons(length),
		.nexthdr = IPPROTO_GRE,
		.hop_limit = tunnel->ttl,
	};
	__builtin_memcpy(&ip->saddr, &tunnel->ends.local, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &tunnel->ends.remote, sizeof(ip->daddr));
}

/* The headers in front of a packet in a tunnel, but for what is of variable
 * length: the fields of GRE, and behind them the inner Ethernet header. */
struct gre_headers4 {
	__u8 pad[2]; /* not sent; so that the rest lies where it should */
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
		       ICMP_QUOTE,
	       "room in struct scratch");

/* Writes the headers to @buffer; @length is what follows the outer IP header.
 * Gives where the fields of GRE go. */
static __always_inline __u32 gre_write_headers(__u8 *buffer,
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
	gre_write_ipv6(&six->ip, tunnel, tos, length);
	six->gre = gre;
	return sizeof(*six);
}

/* Wraps the frame for @tunnel, with @sequence if it sends numbers. The outer
 * Ethernet header is left to route_send(), a checksum to gre_put_checksum(). */
static __noinline enum gre_result
gre_encap(struct __sk_buff *skb, const struct packet *pkt,
	  const struct tunnel *tunnel, const struct network *network,
	  __u32 sequence)
{
	struct gre_base gre = { gre_flags(tunnel, network),
				bpf_htons(ETH_P_TEB) };
	__u32 length = skb->len + gre_length(gre.flags), end;
	struct scratch *scratch = scratch_get();
	__u8 tos = ecn_encapsulate(pkt->tos);
	enum gre_result result;
	struct frame *inner;
	__u8 *buffer;

	if (!scratch)
		return GRE_FAILED;
	if (tunnel->flags & TUNNEL_COPY_DSCP)
		tos |= pkt->tos & ~ECN_MASK;
	buffer = scratch->quote;
	end = gre_write_headers(buffer, tunnel, gre, tos, length);
	if (gre.flags & GRE_FLAG_CSUM) {
		/* Zero until gre_put_checksum(), which sums it up too. */
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
	if (result <= GRE_WRAPPED_UNTOLD &&
	    bpf_skb_store_bytes(skb, 0, buffer + GRE_PAD, end,
				BPF_F_INVALIDATE_HASH))
		return GRE_FAILED;
	return result;
}

/* Puts in the checksum, where the tunnel has one. */
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
	if (!gre_checksum(skb, at, skb->len - at, &checksum) ||
	    bpf_skb_store_bytes(skb, at + sizeof(struct gre_base), &checksum,
				sizeof(checksum), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* A frame that came out of a tunnel. */
struct gre_origin {
	__u32 tunnel; /* 0: not ours, leave it to the host */
	__u32 network;
	__u32 inner; /* offset of the inner Ethernet header */
	__be16 outer; /* ethertype of the outer packet */
	__u8 tos; /* of the outer packet */
};

/* Finds the network that the GRE header at @offset is of in a tunnel. */
static __always_inline enum reason
gre_find_network(struct __sk_buff *skb, __u32 tunnel, __u32 offset,
		 const struct gre_base *gre, __u32 *network)
{
	struct carried_key key = { .tunnel = tunnel };
	__u32 *found;

	if (gre->flags & GRE_FLAG_KEY) {
		offset += gre_length(gre->flags & GRE_FLAG_CSUM);
		if (bpf_skb_load_bytes(skb, offset, &key.key, sizeof(key.key)))
			return REASON_BAD_GRE;
		key.keyed = 1;
	}
	found = bpf_map_lookup_elem(&carried, &key);
	if (!found)
		return REASON_UNKNOWN_KEY;
	*network = *found;
	return REASON_NONE;
}

/* Reads the outer headers of a GRE packet to this host, after parse_l4(). */
static __noinline enum reason
gre_identify(struct __sk_buff *skb, const struct packet *pkt,
	     struct gre_origin *origin)
{
	struct tunnel_ends ends = { .local = pkt->dst, .remote = pkt->src };
	__u32 *id, offset = pkt->l4;
	struct gre_base gre = {};
	enum reason reason;
	__sum16 checksum;

	id = bpf_map_lookup_elem(&tunnel_ids, &ends);
	if (!id) {
		/* Other GRE than ours may well be the host's. */
		if (pkt->fragment ||
		    bpf_skb_load_bytes(skb, offset, &gre, sizeof(gre)) ||
		    gre.protocol != bpf_htons(ETH_P_TEB))
			return REASON_NONE;
		__builtin_memset(&ends.remote, 0, sizeof(ends.remote));
		if (bpf_map_lookup_elem(&tunnel_ids, &ends))
			return REASON_UNKNOWN_TUNNEL;
		return REASON_NONE;
	}
	origin->tunnel = *id;
	origin->outer = pkt->ethertype;
	origin->tos = pkt->tos;
	if (pkt->fragment)
		return REASON_FRAGMENT;
	if (bpf_skb_load_bytes(skb, offset, &gre, sizeof(gre)) ||
	    gre.flags & ~(GRE_FLAG_CSUM | GRE_FLAG_KEY | GRE_FLAG_SEQ) ||
	    gre.protocol != bpf_htons(ETH_P_TEB))
		return REASON_BAD_GRE;
	reason = gre_find_network(skb, origin->tunnel, offset, &gre,
				  &origin->network);
	if (reason)
		return reason;
	/* That of a superframe was right when its packets came, and there is
	 * none of the whole. */
	if (gre.flags & GRE_FLAG_CSUM && !skb->gso_size &&
	    (!gre_checksum(skb, offset,
			   pkt->l3 + packet_said_length(skb, pkt) - offset,
			   &checksum) ||
	     checksum))
		return REASON_BAD_GRE_CHECKSUM;
	origin->inner = offset + gre_length(gre.flags);
	return REASON_NONE;
}

/* What the kernel leaves of a packet at least, with an Ethernet header: before
 * 6.3 as much as the outer IP header. ARP is given the least length of Ethernet
 * anyway. */
static __always_inline __u32 gre_least_length(const struct packet *pkt,
					      const struct gre_origin *origin)
{
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return ETH_ZLEN;
	return origin->outer == bpf_htons(ETH_P_IPV6) && !decap_ipv4_flags ?
		       ETH_HLEN + sizeof(struct ipv6hdr) :
		       0;
}

/* Takes off everything in front of the inner frame that @pkt was read from. */
static __noinline enum reason
gre_decap(struct __sk_buff *skb, struct packet *pkt,
	  const struct gre_origin *origin)
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

/* Whether the kernel still takes what came out of @origin for what the outer
 * packet was. */
static __always_inline bool
gre_is_mistaken(const struct packet *pkt, const struct gre_origin *origin)
{
	return pkt->ethertype == bpf_htons(ETH_P_ARP) ||
	       (pkt->ethertype != origin->outer && !decap_ipv6_flags);
}

#endif
