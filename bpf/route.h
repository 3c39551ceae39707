/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where the host's routing table sends a packet. The programs ask the kernel's
 * own table, so routes and rules are at most one tick of the clock old.
 * Neighbors are always the kernel's.
 */
#ifndef EBPNET_ROUTE_H
#define EBPNET_ROUTE_H

#include "config.h"
#include "scratch.h"
#include "uplink_find.h"
#include "headers/uapi.h"

/* Distributes routes over the places of the cache: 2^64 divided by the golden
 * ratio (Knuth's multiplicative hashing). */
#define ROUTE_MULTIPLIER 0x9e3779b97f4a7c15

/* RFC 1122, 3.2.1.3; RFC 4291, 2.4: addresses that no router forwards. */
static __always_inline bool route_is_unroutable(const struct address *a)
{
	if (address_is_ipv4(a)) {
		__u32 ipv4 = bpf_ntohl(a->word[3]);

		return ipv4 >> 24 == 127 || ipv4 >> 28 >= 14 || !ipv4;
	}
	return (!(a->word[0] | a->word[1] | a->word[2]) &&
		bpf_ntohl(a->word[3]) <= 1) ||
	       bpf_ntohl(a->word[0]) >> 24 == 0xff || address_is_link_local(a);
}

/*
 * The MTU of an uplink, or @known if the kernel gives none. The MTU of a
 * route lookup includes path MTUs that the host has learned from ICMP errors,
 * and any sender can forge those.
 */
static __always_inline __u32 route_mtu(ctx_t *ctx, __u32 ifindex, __u32 known)
{
	__u32 mtu = 1; /* as a length, it always fits */

	return bpf_check_mtu(ctx, ifindex, &mtu, 0, 0) < 0 ? known : mtu;
}

/* Without a route lookup (see route_ask()) all packets take the uplink of the
 * default route. The kernel still finds the next hop. */
static __always_inline enum reason
route_by_default(const struct address *dst, struct route *route)
{
	const struct uplink *uplink = uplink_find(0);
	const struct address *own;

	if (!uplink)
		return REASON_NO_ROUTE;
	own = address_is_ipv4(dst) ? &uplink->ipv4 : &uplink->ipv6;
	route->source = *own;
	route->ifindex = address_equal(own, dst) ? 0 : uplink->ifindex;
	route->mtu = uplink->mtu;
	return REASON_NONE;
}

/*
 * Asks the host's routing table for the route from @src to @dst.
 *
 * bpf_fib_lookup() answers only while forwarding is on for the device it is
 * asked about. That device is ebpnet's own, but a change of the host's
 * ip_forward changes every device. Then route_by_default() is used.
 */
__verified_once enum reason
route_ask(ctx_t *ctx, const struct address *src, const struct address *dst,
	  struct route *route)
{
	struct scratch *scratch = scratch_get();
	struct bpf_fib_lookup *fib;
	const struct uplink *uplink;
	bool ipv4;

	if (!src || !dst || !route || !scratch)
		return REASON_KERNEL_ERROR;
	fib = &scratch->fib;
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = gateway_ifindex;
	/* Of any length, because the route is cached for other packets too. */
	fib->tot_len = 1;
	ipv4 = address_is_ipv4(dst);
	fib->family = ipv4 ? AF_INET : AF_INET6;
	if (ipv4) {
		fib->ipv4_src = src->word[3];
		fib->ipv4_dst = dst->word[3];
	} else {
		__builtin_memcpy(fib->ipv6_src, src, sizeof(*src));
		__builtin_memcpy(fib->ipv6_dst, dst, sizeof(*dst));
	}
	route->ifindex = route->mtu = 0;
	__builtin_memset(&route->next, 0, sizeof(route->next));

	switch (bpf_fib_lookup(ctx, fib, sizeof(*fib), fib_flags)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return REASON_NONE;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return route_by_default(dst, route);
	default:
		return REASON_NO_ROUTE;
	}

	/* An address in the subnet of a network that no station has. */
	if (fib->ifindex == gateway_ifindex)
		return REASON_ISOLATED;
	uplink = uplink_find(fib->ifindex);
	if (!uplink)
		return REASON_NOT_UPLINK;

	route->source = ipv4 ? uplink->ipv4 : uplink->ipv6;
	route->ifindex = fib->ifindex;
	route->mtu = route_mtu(ctx, fib->ifindex, uplink->mtu);
	/* The next hop of an IPv4 route may be an IPv6 address: RFC 8950. */
	route->next.nh_family = fib->family;
	if (fib->family == AF_INET)
		route->next.ipv4_nh = fib->ipv4_dst;
	else
		__builtin_memcpy(route->next.ipv6_nh, fib->ipv6_dst,
				 sizeof(fib->ipv6_dst));
	if (!(fib_flags & BPF_FIB_LOOKUP_SRC))
		return REASON_NONE;
	if (ipv4)
		route->source = address_from_ipv4(fib->ipv4_src);
	else
		__builtin_memcpy(&route->source, fib->ipv6_src,
				 sizeof(route->source));
	return REASON_NONE;
}

/* The place of the route from @src to @dst in `ways`. */
static __always_inline __u32 route_place(const struct address *src,
					 const struct address *dst)
{
	__u64 from = src->word[0] ^ src->word[1] ^ src->word[2] ^ src->word[3];
	__u64 to = dst->word[0] ^ dst->word[1] ^ dst->word[2] ^ dst->word[3];

	return ((from << 32 | to) * ROUTE_MULTIPLIER) >>
	       (64 - ROUTE_CACHE_BITS);
}

/*
 * Finds the route from @src to @dst; REASON_TOO_BIG if an IP packet of @length
 * is longer than route->mtu. Asks the routing table at most once a tick of the
 * clock (a few milliseconds) for the same addresses, because that takes longer
 * than all other lookups of a packet.
 */
static __noinline enum reason
route_find(ctx_t *ctx, const struct address *src, const struct address *dst,
	   __u32 length, struct route *route)
{
	__u32 place = route_place(src, dst);
	struct cached_route *cached = bpf_map_lookup_elem(&ways, &place);
	__u64 now = bpf_ktime_get_coarse_ns();

	if (!cached)
		return REASON_KERNEL_ERROR;
	if (cached->found != now || !address_equal(&cached->dst, dst) ||
	    !address_equal(&cached->src, src)) {
		cached->src = *src;
		cached->dst = *dst;
		cached->reason = route_ask(ctx, &cached->src, &cached->dst,
					   &cached->route);
		cached->found = now;
	}
	*route = cached->route;
	if (!cached->reason && route->ifindex && route->mtu &&
	    length > route->mtu)
		return REASON_TOO_BIG;
	return cached->reason;
}

/* Whether the host itself has the address. */
static __noinline bool route_is_local(ctx_t *ctx, const struct address *address)
{
	struct route route = {};

	return !route_find(ctx, address, address, 0, &route) && !route.ifindex;
}

/* Decrements the TTL. */
static __always_inline enum reason
route_decrement_ttl(ctx_t *ctx, struct packet *pkt)
{
	bool ipv4 = address_is_ipv4(&pkt->dst);
	__u8 ttl = pkt->ttl - 1;

	if (pkt->ttl <= 1)
		return REASON_TTL_EXCEEDED;
	if (ipv4) {
		/* The checksum covers words: TTL and protocol are one word. */
		__be16 old = bpf_htons(pkt->ttl << 8 | pkt->protocol);
		__be16 new = bpf_htons(ttl << 8 | pkt->protocol);

		if (ctx_mend_l3(ctx, pkt->l3 + offsetof(struct iphdr, check),
				old, new, sizeof(new)))
			return REASON_KERNEL_ERROR;
	}
	/* The sum of an IPv4 header does not change, because its checksum has
	 * changed too. */
	if (ctx_store(ctx,
		      pkt->l3 + (ipv4 ? offsetof(struct iphdr, ttl) :
					offsetof(struct ipv6hdr, hop_limit)),
		      &ttl, sizeof(ttl), ipv4 ? 0 : BPF_F_RECOMPUTE_CSUM))
		return REASON_KERNEL_ERROR;
	pkt->ttl = ttl;
	return REASON_NONE;
}

#endif
