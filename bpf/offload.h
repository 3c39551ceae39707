/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Offloads: a packet asks the kernel to complete its checksum, and to segment
 * it if it is a superframe. A sender with a packet socket (PACKET_VNET_HDR)
 * chooses both freely. It could have the kernel write a checksum anywhere, also
 * over addresses and ports after they were checked or translated here.
 */
#ifndef EBPNET_OFFLOAD_H
#define EBPNET_OFFLOAD_H

#include "kernel.h"
#include "parse.h"

/* A value of ip_summed: the checksum is incomplete. From linux/skbuff.h, like
 * the kinds of superframes. */
#define CHECKSUM_PARTIAL 3

enum gso_kind {
	GSO_TCPV4 = 1 << 0,
	GSO_TCPV6 = 1 << 4,
	GSO_FCOE = 1 << 5,
	GSO_GRE = 1 << 6,
	GSO_GRE_CSUM = 1 << 7,
	GSO_IPXIP4 = 1 << 8,
	GSO_IPXIP6 = 1 << 9,
	GSO_UDP_TUNNEL = 1 << 10,
	GSO_UDP_TUNNEL_CSUM = 1 << 11,
	GSO_TUNNEL_REMCSUM = 1 << 13,
	GSO_SCTP = 1 << 14,
	GSO_ESP = 1 << 15,
	GSO_UDP_FRAGMENTS = 1 << 16,
	GSO_UDP = 1 << 17,
	GSO_FRAGLIST = 1 << 18,

	/* Outer headers. The kernel leaves these flags on a superframe that
	 * came out of a tunnel. */
	GSO_TUNNELS = GSO_GRE | GSO_GRE_CSUM | GSO_IPXIP4 | GSO_IPXIP6 |
		      GSO_UDP_TUNNEL | GSO_UDP_TUNNEL_CSUM,
	/* A container may wrap its own superframes. */
	GSO_WRAPPED = GSO_TUNNELS | GSO_TCPV4 | GSO_TCPV6 | GSO_UDP |
		      GSO_TUNNEL_REMCSUM | GSO_ESP,
	GSO_KINDS = GSO_WRAPPED | GSO_FCOE | GSO_SCTP | GSO_UDP_FRAGMENTS |
		    GSO_FRAGLIST,
};

/* The most packets that a superframe may stand for: more than 512 KB (BIG TCP)
 * in segments of 536 bytes, the smallest maximum of TCP (RFC 9293, 3.7.1). */
#define MAX_SEGMENTS 1024

/* The checksum that a packet asks the kernel to complete. */
struct offload {
	__u32 partial; /* 1: the checksum is incomplete */
	__u32 start; /* offset in the frame at which its sum begins */
	__u32 offset; /* from there to the field of the sum */
};

static __always_inline struct offload offload_read(struct __sk_buff *skb)
{
	struct sk_buff *kernel = (void *)skb;
	struct offload offload = {};
	__u64 headroom; /* the start of the frame */

	if (bpf_cast_to_kern_ctx) {
		kernel = bpf_cast_to_kern_ctx(skb);
		if (BPF_CORE_READ_BITFIELD(kernel, ip_summed) !=
		    CHECKSUM_PARTIAL)
			return offload;
		headroom = kernel->data - kernel->head;
		offload.start = kernel->csum_start;
		offload.offset = kernel->csum_offset;
	} else {
		if (BPF_CORE_READ_BITFIELD_PROBED(kernel, ip_summed) !=
		    CHECKSUM_PARTIAL)
			return offload;
		headroom = BPF_CORE_READ(kernel, data) -
			   BPF_CORE_READ(kernel, head);
		offload.start = BPF_CORE_READ(kernel, csum_start);
		offload.offset = BPF_CORE_READ(kernel, csum_offset);
	}
	/* The verifier allows only 64-bit arithmetic on these pointers. */
	barrier_var(headroom);
	offload.start -= headroom;
	offload.partial = 1;
	return offload;
}

/* The kinds of superframe that the packet claims to be. */
static __always_inline __u32 offload_gso_kinds(struct __sk_buff *skb)
{
	struct sk_buff *kernel = (void *)skb;
	struct skb_shared_info *info;

	info = (void *)BPF_CORE_READ(kernel, head) + BPF_CORE_READ(kernel, end);
	return BPF_CORE_READ(info, gso_type) & GSO_KINDS;
}

/* The kinds of superframe that a packet may be if its checksum is completed as
 * @offload says; -1 if no checksum may be written there. @l4 is the offset of
 * its transport header. */
static __always_inline __s32 offload_allowed(const struct packet *pkt,
					     const struct offload *offload,
					     __u32 l4)
{
	bool own = offload->start == l4;

	switch (pkt->protocol) {
	case IPPROTO_TCP:
		if (!own || offload->offset != offsetof(struct tcphdr, check))
			return -1;
		return GSO_TUNNELS |
		       (address_is_ipv4(&pkt->dst) ? GSO_TCPV4 : GSO_TCPV6);
	case IPPROTO_UDP:
		if (own && offload->offset == offsetof(struct udphdr, check))
			return GSO_TUNNELS | GSO_UDP;
		/* The checksum belongs to an inner packet of the container's
		 * own tunnel. No program here reads it. */
		return offload->start >= l4 + sizeof(struct udphdr) ?
			       GSO_WRAPPED :
			       -1;
	case IPPROTO_SCTP:
		if (!own || offload->offset != offsetof(struct sctp, checksum))
			return -1;
		return GSO_TUNNELS | GSO_SCTP;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
	case IPPROTO_IGMP:
		return -1; /* the kernel asks for none */
	}
	return offload->start >= l4 ? GSO_WRAPPED : -1;
}

/* Whether the checksum to be completed is that of the packet's own TCP or UDP:
 * fragment_complete() can complete this one only. */
static __always_inline bool
offload_is_own(const struct packet *pkt, const struct offload *offload,
	       __u32 l4)
{
	return offload->start == l4 &&
	       (pkt->protocol == IPPROTO_TCP || pkt->protocol == IPPROTO_UDP);
}

/* Whether the packet asks only for offloads of its own transport, or of headers
 * behind it. After parse_l4(); or after parse_l3() for IPv4, and for TCP and
 * UDP without extension headers. Clears PACKET_FRAGMENTABLE if only a device
 * can complete the checksum. */
static __noinline enum reason
offload_check(struct __sk_buff *skb, struct packet *pkt)
{
	struct offload offload = offload_read(skb);
	__u32 l4 = pkt->l4 ? pkt->l4 : pkt->l3 + pkt->l3_length;
	__s32 allowed = 0;

	if (offload.partial) {
		if (pkt->fragment || offload.start > skb->len ||
		    pkt->ethertype == bpf_htons(ETH_P_ARP))
			return REASON_BAD_OFFLOAD;
		allowed = offload_allowed(pkt, &offload, l4);
		if (allowed < 0)
			return REASON_BAD_OFFLOAD;
		if (!offload_is_own(pkt, &offload, l4))
			pkt->flags &= ~PACKET_FRAGMENTABLE;
	}
	if (skb->gso_size && (skb->len / skb->gso_size > MAX_SEGMENTS ||
			      offload_gso_kinds(skb) & ~allowed))
		return REASON_BAD_OFFLOAD;
	return REASON_NONE;
}

#endif
