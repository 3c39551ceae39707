/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * IPv4 packets without DF that are too large for their route are sent in
 * fragments: RFC 791, 3.2; RFC 1812, 4.2.2.7. Each fragment starts as a copy of
 * the whole packet. The copy comes in at the far end of the host's own veth,
 * and from_host() trims it there. All copies share their bytes, so skb->mark
 * has the number of the fragment. The next hop is written over bytes that
 * from_host() can restore.
 */
#ifndef EBPNET_FRAGMENT_SEND_H
#define EBPNET_FRAGMENT_SEND_H

#include "csum.h"
#include "ctx_sum.h"
#include "fragment.h"
#include "offload.h"
#include "route_send.h"
#include "tunnel_send.h"
#include "verdict.h"

/* skb->mark of a copy: the fragment's number in the lowest bits, then the units
 * of payload in each. */
enum fragment_mark {
	FRAGMENT_MARK_ROOM = 6, /* bits to shift by */
	FRAGMENT_MARK_ROOM_MASK = 0x1fff,
	FRAGMENT_MARK_TUNNEL = 1 << 19, /* into a tunnel, not by an uplink */
	FRAGMENT_MARK = 0xeb300000,
	FRAGMENT_MARK_KIND = 0xfff00000,
};
_Static_assert(MAX_FRAGMENTS == 1 << FRAGMENT_MARK_ROOM, "enum fragment_mark");

#define FRAGMENT_L3 sizeof(struct ethhdr)
#define FRAGMENT_L4 (FRAGMENT_L3 + sizeof(struct iphdr))

/* The route by an uplink, written over the MAC addresses. */
struct fragment_route {
	__u16 unicast; /* the start of a unicast address */
	__be16 next[2]; /* IPv4 address of the next hop; 0: let the kernel find
			 * it */
	__u16 pad;
	__u16 ifindex[2]; /* its lower half first */
};
_Static_assert(sizeof(struct fragment_route) == 2 * ETH_ALEN,
	       "struct fragment_route");

#define FRAGMENT_UNICAST 2 /* locally administered, in little-endian order */

struct fragment_copies {
	struct __sk_buff *skb;
	__u32 mark;
};

static int fragment_copy(__u32 index, void *context)
{
	struct fragment_copies *copies = context;
	struct __sk_buff *skb = copies->skb;

	skb->mark = copies->mark | index;
	if (bpf_clone_redirect(skb, datapath_ifindex, BPF_F_INGRESS))
		verdict_count(skb, REASON_COPY_FAILED);
	return 0;
}

/*
 * Completes the checksum of TCP or UDP if that is left to a device: the device
 * would see only one fragment. offload_check() lets no packet with another
 * incomplete checksum be fragmented.
 */
static __noinline enum reason
fragment_complete(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 length = pkt->length - (pkt->l4 - pkt->l3);
	struct offload offload = offload_read(skb);
	__sum16 check;

	if (!offload.partial)
		return REASON_NONE;
	/* The field already has the sum of the pseudo-header. */
	if (!ctx_sum_checksum(skb, pkt->l4, length, &check))
		return REASON_MALFORMED;
	if (!check)
		check = (__sum16)~0; /* 0 means: no checksum */
	return bpf_skb_store_bytes(skb, pkt->l4 + offload.offset, &check,
				   sizeof(check), BPF_F_RECOMPUTE_CSUM) ?
		       REASON_KERNEL_ERROR :
		       REASON_NONE;
}

/* Sends a packet in fragments with @room for payload each. @mark is
 * FRAGMENT_MARK_TUNNEL or 0. */
static __noinline int
fragment_send(struct __sk_buff *skb, const struct packet *pkt, __u32 room,
	      __u32 mark)
{
	__u32 length = pkt->length - sizeof(struct iphdr);
	struct fragment_copies copies = { .skb = skb };
	enum reason reason = fragment_complete(skb, pkt);

	if (reason)
		return verdict_drop(skb, reason);
	copies.mark = FRAGMENT_MARK | mark |
		      room / FRAGMENT_UNIT << FRAGMENT_MARK_ROOM;
	bpf_loop((length + room - 1) / room, fragment_copy, &copies, 0);
	return verdict_consume();
}

/* Sends a packet that is too large for @route in fragments. */
static __noinline int
fragment_send_by(struct __sk_buff *skb, const struct packet *pkt,
		 const struct route *route)
{
	__u32 room = fragment_room(pkt, route->mtu);
	struct fragment_route target = {
		.unicast = FRAGMENT_UNICAST,
		.ifindex = { route->ifindex, route->ifindex >> 16 },
	};

	if (!room)
		return verdict_drop(skb, REASON_TOO_BIG);
	if (route->next.nh_family == AF_INET) {
		target.next[0] = route->next.ipv4_nh;
		target.next[1] = route->next.ipv4_nh >> 16;
	}
	if (bpf_skb_store_bytes(skb, 0, &target, sizeof(target), 0))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	return fragment_send(skb, pkt, room, 0);
}

/* The mark of a copy for a tunnel, written over bytes of the IP header that can
 * be restored. */
#define FRAGMENT_LOW_BITS \
	16 /* in the checksum; the rest in the header length */

/* Sends a packet in fragments into a tunnel, with @room for payload each. */
static __noinline int
fragment_send_into(struct __sk_buff *skb, const struct packet *pkt,
		   __u32 network, __u32 tunnel, __u32 room)
{
	__u32 mark = tunnel_mark(network, tunnel) & ~TUNNEL_MARK_KIND;
	__u8 high = 4 << 4 | mark >> FRAGMENT_LOW_BITS;
	__u16 low = mark;

	if (bpf_skb_store_bytes(skb, FRAGMENT_L3, &high, sizeof(high), 0) ||
	    bpf_skb_store_bytes(skb,
				FRAGMENT_L3 + offsetof(struct iphdr, check),
				&low, sizeof(low), 0))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	return fragment_send(skb, pkt, room, FRAGMENT_MARK_TUNNEL);
}

/* bpf_skb_adjust_room() takes away less than 4096 bytes at once. */
#define FRAGMENT_STEP  4088
#define FRAGMENT_STEPS (65536 / FRAGMENT_STEP + 1)

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

/* Removes the @length bytes of payload in front of the fragment's own. */
static __noinline enum reason fragment_cut(struct __sk_buff *skb, __u32 length)
{
	struct fragment_cut cut = { .skb = skb, .left = length };

	bpf_loop(FRAGMENT_STEPS, fragment_cut_step, &cut, 0);
	return cut.left ? REASON_KERNEL_ERROR : REASON_NONE;
}

/* The number of bytes to remove from the front of a packet, so that the kernel
 * clears its mark of an incomplete checksum: more than the headers before the
 * transport header. */
#define FRAGMENT_FORGET 40
_Static_assert(FRAGMENT_FORGET > FRAGMENT_L4, "FRAGMENT_FORGET");

/* Clears the kernel's mark of an incomplete checksum on a first fragment:
 * fragment_complete() has completed it. */
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

/* Trims a copy to the fragment of @mark. Returns the mark for a tunnel that was
 * in its IP header. */
static __always_inline enum reason
fragment_trim(struct __sk_buff *skb, __u32 mark, __u32 *hidden)
{
	__u32 index = mark & (MAX_FRAGMENTS - 1), at, length;
	__u32 room = (mark >> FRAGMENT_MARK_ROOM & FRAGMENT_MARK_ROOM_MASK) *
		     FRAGMENT_UNIT;
	enum reason reason;
	struct iphdr ip;
	__u16 place;

	if (bpf_skb_load_bytes(skb, FRAGMENT_L3, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	at = index * room;
	length = bpf_ntohs(ip.tot_len) - sizeof(ip);
	if (!room || at >= length)
		return REASON_MALFORMED;
	length -= at;
	place = bpf_ntohs(ip.frag_off) + at / FRAGMENT_UNIT;
	if (length > room) {
		length = room;
		place |= IP_MF;
	}
	*hidden = (__u32)ip.ihl << FRAGMENT_LOW_BITS | ip.check;
	ip.ihl = sizeof(ip) / sizeof(__be32);
	ip.frag_off = bpf_htons(place);
	ip.tot_len = bpf_htons(sizeof(ip) + length);
	ip.check = 0;
	ip.check =
		csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	reason = fragment_cut(skb, at);
	if (reason)
		return reason;
	if (bpf_skb_change_tail(skb, FRAGMENT_L4 + length, 0) ||
	    bpf_skb_store_bytes(skb, FRAGMENT_L3, &ip, sizeof(ip), 0))
		return REASON_KERNEL_ERROR;
	return index ? REASON_NONE : fragment_forget(skb);
}

/* Trims a copy to the fragment of its mark, and sends it. */
static __noinline int fragment_go_on(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, hidden;
	struct fragment_route target;
	struct route route = {};
	enum reason reason;

	skb->mark = 0;
	reason = fragment_trim(skb, mark, &hidden);
	if (reason)
		return verdict_drop(skb, reason);
	if (mark & FRAGMENT_MARK_TUNNEL)
		return tunnel_detour(skb, TUNNEL_MARK_FRAME | hidden);
	if (bpf_skb_load_bytes(skb, 0, &target, sizeof(target)))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	route.ifindex = target.ifindex[0] | (__u32)target.ifindex[1] << 16;
	route.next.ipv4_nh = target.next[0] | (__u32)target.next[1] << 16;
	if (route.next.ipv4_nh)
		route.next.nh_family = AF_INET;
	return route_send(skb, &route);
}

#endif
