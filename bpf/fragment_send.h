/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * IPv4 packets without DF that do not fit their way are sent in fragments: RFC
 * 791, 3.2; RFC 1812, 4.2.2.7. Each starts as a copy of the whole packet, which
 * comes in at the far end of the host's own veth and is trimmed there, by
 * from_host(). All copies share their bytes, so skb->mark says which fragment
 * one becomes.
 */
#ifndef EBPNET_FRAGMENT_SEND_H
#define EBPNET_FRAGMENT_SEND_H

#include "csum.h"
#include "ctx_sum.h"
#include "deliver.h"

enum fragment_mark {
	FRAGMENT_MARK = 0xeb300000, /* and the fragment's number */
	FRAGMENT_MARK_KIND = 0xfff00000,
};

/* Offsets of fragments count in units of 8 bytes. */
#define FRAGMENT_UNIT 8

/* A packet that takes more fragments is not sent: as each is copied whole, it
 * would take too long. */
#define MAX_FRAGMENTS 64

/* What every way takes whole: RFC 791, 3.2. */
#define FRAGMENT_LEAST_MTU 68

/* bpf_skb_adjust_room() takes away less than 4096 bytes at once. */
#define FRAGMENT_STEP  4088
#define FRAGMENT_STEPS (65536 / FRAGMENT_STEP + 1)

#define FRAGMENT_L3 sizeof(struct ethhdr)
#define FRAGMENT_L4 (FRAGMENT_L3 + sizeof(struct iphdr))

/* The way on, which copies have in place of MAC addresses. */
struct fragment_way {
	__u16 unicast; /* the start of an address that is no group's */
	__be16 next[2]; /* IPv4 address of the next hop; 0: let the kernel find
			 * it */
	__u16 mtu;
	__u16 ifindex[2]; /* its lower half first */
};
_Static_assert(sizeof(struct fragment_way) == 2 * ETH_ALEN,
	       "struct fragment_way");

#define FRAGMENT_UNICAST 2 /* locally administered, in little-endian order */

/* How much payload goes into each fragment, of at most @mtu bytes; 0 if there
 * is to be none. */
static __always_inline __u32 fragment_room(__u32 mtu)
{
	if (mtu < FRAGMENT_LEAST_MTU)
		return 0;
	return (mtu - sizeof(struct iphdr)) & ~(FRAGMENT_UNIT - 1);
}

struct fragment_copies {
	struct __sk_buff *skb;
};

static int fragment_copy(__u32 index, void *context)
{
	struct fragment_copies *copies = context;
	struct __sk_buff *skb = copies->skb;

	skb->mark = FRAGMENT_MARK | index;
	if (bpf_clone_redirect(skb, datapath_ifindex, BPF_F_INGRESS))
		verdict_count(skb, REASON_COPY_FAILED);
	return 0;
}

/*
 * Puts in the transport's checksum if a device is still to do that: it would
 * see but one fragment. The field then has the sum of the pseudo-header, which
 * is how it is told; where that is the right checksum by chance, it stays the
 * same.
 */
static __noinline enum reason
fragment_complete(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 length = packet_said_length(skb, pkt) - (pkt->l4 - pkt->l3);
	__u32 at = pkt->l4 + (pkt->protocol == IPPROTO_TCP ?
				      offsetof(struct tcphdr, check) :
				      offsetof(struct udphdr, check));
	__sum16 check;
	__s64 sum;

	if (pkt->fragment ||
	    (pkt->protocol != IPPROTO_TCP && pkt->protocol != IPPROTO_UDP))
		return REASON_NONE;
	/* What an IPv4 address has in front of it here adds nothing. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pkt->src, sizeof(pkt->src),
			    bpf_htonl(length + pkt->protocol));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pkt->dst, sizeof(pkt->dst),
			    sum);
	if (bpf_skb_load_bytes(skb, at, &check, sizeof(check)))
		return REASON_MALFORMED;
	if (check != (__u16)~csum_fold(sum))
		return REASON_NONE;
	if (!ctx_checksum(skb, pkt->l4, length, &check))
		return REASON_MALFORMED;
	if (!check)
		check = (__sum16)~0; /* 0 would say that there is none */
	return bpf_skb_store_bytes(skb, at, &check, sizeof(check),
				   BPF_F_RECOMPUTE_CSUM) ?
		       REASON_KERNEL_ERROR :
		       REASON_NONE;
}

/* Sends a packet by @route in fragments, as it does not fit whole. */
static __noinline int
fragment_send(struct __sk_buff *skb, const struct packet *pkt,
	      const struct route *route)
{
	struct fragment_copies copies = { .skb = skb };
	__u32 room = fragment_room(route->mtu), count;
	struct fragment_way way = {
		.unicast = FRAGMENT_UNICAST,
		.mtu = route->mtu,
		.ifindex = { route->ifindex, route->ifindex >> 16 },
	};
	enum reason reason;

	count = packet_said_length(skb, pkt) - sizeof(struct iphdr);
	if (!room || count > room * MAX_FRAGMENTS)
		return verdict_drop(skb, REASON_TOO_BIG);
	count = (count + room - 1) / room;
	if (route->next.nh_family == AF_INET) {
		way.next[0] = route->next.ipv4_nh;
		way.next[1] = route->next.ipv4_nh >> 16;
	}
	reason = fragment_complete(skb, pkt);
	if (!reason && bpf_skb_store_bytes(skb, 0, &way, sizeof(way), 0))
		reason = REASON_KERNEL_ERROR;
	if (reason)
		return verdict_drop(skb, reason);
	bpf_loop(count, fragment_copy, &copies, 0);
	return verdict_consume();
}

struct fragment_cut {
	struct __sk_buff *skb;
	__u32 left;
};

static int fragment_cut_step(__u32 i, void *context)
{
	struct fragment_cut *cut = context;
	__u32 length = cut->left;

	if (length > FRAGMENT_STEP)
		length = FRAGMENT_STEP;
	if (!length ||
	    bpf_skb_adjust_room(cut->skb, -(__s32)length, BPF_ADJ_ROOM_NET, 0))
		return 1;
	cut->left -= length;
	return 0;
}

/* Takes away the @length bytes of payload that the fragment does not start
 * with. */
static __noinline enum reason fragment_cut(struct __sk_buff *skb, __u32 length)
{
	struct fragment_cut cut = { .skb = skb, .left = length };

	bpf_loop(FRAGMENT_STEPS, fragment_cut_step, &cut, 0);
	return cut.left ? REASON_KERNEL_ERROR : REASON_NONE;
}

/* What has to go in front of a packet for the kernel to forget that a device is
 * to complete a checksum of it: more than is in front of the transport header. */
#define FRAGMENT_FORGET 40
_Static_assert(FRAGMENT_FORGET > FRAGMENT_L4, "FRAGMENT_FORGET");

/* Has the kernel forget of a first fragment that its checksum is still to be
 * completed, as fragment_complete() has done that. */
static __noinline enum reason fragment_forget(struct __sk_buff *skb)
{
	__u8 start[FRAGMENT_FORGET];

	if (bpf_skb_load_bytes(skb, FRAGMENT_L4, start, sizeof(start)) ||
	    bpf_skb_adjust_room(skb, -FRAGMENT_FORGET, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_adjust_room(skb, FRAGMENT_FORGET, BPF_ADJ_ROOM_NET, 0) ||
	    bpf_skb_store_bytes(skb, FRAGMENT_L4, start, sizeof(start), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Trims a copy to the fragment with the number @index, of which each has @room
 * for payload. */
static __always_inline enum reason
fragment_trim(struct __sk_buff *skb, __u32 index, __u32 room)
{
	__u32 at = index * room, length;
	struct iphdr old, new;
	enum reason reason;
	__u16 place;

	if (bpf_skb_load_bytes(skb, FRAGMENT_L3, &old, sizeof(old)))
		return REASON_MALFORMED;
	length = bpf_ntohs(old.tot_len) - sizeof(old);
	if (!room || at >= length)
		return REASON_MALFORMED;
	length -= at;
	new = old;
	place = bpf_ntohs(old.frag_off) + at / FRAGMENT_UNIT;
	if (length > room) {
		length = room;
		place |= IP_MF;
	}
	new.frag_off = bpf_htons(place);
	new.tot_len = bpf_htons(sizeof(new) + length);
	/* RFC 1624, equation 3. */
	new.check =
		csum_fold((__u16)~old.check + (__u16)~old.tot_len +
			  (__u16)~old.frag_off + new.tot_len + new.frag_off);
	reason = fragment_cut(skb, at);
	if (reason)
		return reason;
	if (bpf_skb_change_tail(skb, FRAGMENT_L4 + length, 0) ||
	    bpf_skb_store_bytes(skb, FRAGMENT_L3, &new, sizeof(new), 0))
		return REASON_KERNEL_ERROR;
	return index ? REASON_NONE : fragment_forget(skb);
}

/* Makes a copy the fragment that it is marked as, and sends it. */
static __noinline int fragment_go_on(struct __sk_buff *skb)
{
	__u32 index = skb->mark & ~FRAGMENT_MARK_KIND;
	struct fragment_way way;
	struct route route = {};
	enum reason reason;

	skb->mark = 0;
	if (index >= MAX_FRAGMENTS ||
	    bpf_skb_load_bytes(skb, 0, &way, sizeof(way)))
		return verdict_drop(skb, REASON_MALFORMED);
	reason = fragment_trim(skb, index, fragment_room(way.mtu));
	if (reason)
		return verdict_drop(skb, reason);
	route.ifindex = way.ifindex[0] | (__u32)way.ifindex[1] << 16;
	route.next.ipv4_nh = way.next[0] | (__u32)way.next[1] << 16;
	if (route.next.ipv4_nh)
		route.next.nh_family = AF_INET;
	return route_send(skb, &route);
}

#endif
