/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about packets of translated flows: the error and the packet that
 * it quotes are translated (RFC 5508, 4).
 */
#ifndef EBPNET_ICMP_H
#define EBPNET_ICMP_H

#include "packet.h"
#include "search.h"

/* The part of a transport header that every error quotes: RFC 792. */
struct icmp_ports {
	__be16 word[4];
};
_Static_assert(sizeof(struct icmp_ports) == 8, "struct icmp_ports");

/* The quoted packet: its offsets, and the key of packets in the other
 * direction. */
struct icmp_quoted {
	__u32 l3;
	__u32 l4;
	struct flow_key *back;
};

/* Reads the ports of the quoted packet. The identifier of an echo stands for
 * the port of the side that asks. */
static __always_inline enum reason
icmp_read_ports(struct __sk_buff *skb, const struct packet *pkt,
		struct icmp_quoted *quoted)
{
	struct icmp_ports ports;

	if (bpf_skb_load_bytes(skb, quoted->l4, &ports, sizeof(ports)))
		return REASON_MALFORMED;
	if (packet_has_ports(quoted->back->protocol)) {
		quoted->back->dport = ports.word[0];
		quoted->back->sport = ports.word[1];
		return REASON_NONE;
	}
	switch (parse_echo(pkt, ((__u8 *)&ports)[0])) {
	case ECHO_REQUEST:
		quoted->back->dport = ports.word[2];
		return REASON_NONE;
	case ECHO_REPLY:
		quoted->back->sport = ports.word[2];
		return REASON_NONE;
	default:
		return REASON_UNKNOWN_FLOW;
	}
}

static __always_inline enum reason
icmp_read_ipv4(struct __sk_buff *skb, struct icmp_quoted *quoted)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, quoted->l3, &ip, sizeof(ip)) ||
	    ip.version != 4 || ip.ihl < 5)
		return REASON_MALFORMED;
	quoted->l4 = quoted->l3 + ip.ihl * 4;
	quoted->back->src = address_from_ipv4(ip.daddr);
	quoted->back->dst = address_from_ipv4(ip.saddr);
	quoted->back->protocol = ip.protocol;
	return ip.frag_off & bpf_htons(IP_OFFSET_MASK) ? REASON_UNKNOWN_FLOW :
							 REASON_NONE;
}

static __always_inline enum reason
icmp_read_ipv6(struct __sk_buff *skb, struct icmp_quoted *quoted)
{
	struct packet pkt = {};
	enum reason reason;
	struct ipv6hdr ip6;

	if (bpf_skb_load_bytes(skb, quoted->l3, &ip6, sizeof(ip6)) ||
	    ip6.version != 6)
		return REASON_MALFORMED;
	__builtin_memcpy(&quoted->back->src, &ip6.daddr, sizeof(ip6.daddr));
	__builtin_memcpy(&quoted->back->dst, &ip6.saddr, sizeof(ip6.saddr));
	pkt.protocol = ip6.nexthdr;
	quoted->l4 = quoted->l3 + sizeof(ip6);
	reason = parse_extensions(skb, &pkt, &quoted->l4);
	if (reason)
		return reason;
	if (pkt.fragment == FRAGMENT_LATER)
		return REASON_UNKNOWN_FLOW;
	quoted->back->protocol = pkt.protocol;
	return REASON_NONE;
}

/* The offset at which the error ends. The padding of the frame is not quoted.
 */
static __always_inline __u32 icmp_end(struct __sk_buff *skb,
				      const struct packet *pkt)
{
	return pkt->l3 + pkt->length;
}

/* Reads the packet that the error @pkt quotes. */
static __noinline enum reason
icmp_read(struct __sk_buff *skb, const struct packet *pkt, __u32 network,
	  struct icmp_quoted *quoted)
{
	enum reason reason;

	*quoted->back = (struct flow_key){ .network = network };
	quoted->l3 = pkt->l4 + sizeof(struct icmp);
	reason = address_is_ipv4(&pkt->dst) ? icmp_read_ipv4(skb, quoted) :
					      icmp_read_ipv6(skb, quoted);
	if (reason)
		return reason;
	if (quoted->l4 + sizeof(struct icmp_ports) > icmp_end(skb, pkt))
		return REASON_MALFORMED;
	return icmp_read_ports(skb, pkt, quoted);
}

/*
 * Checks an ICMP error that an endpoint sends to any receiver. An endpoint is
 * no router, so its errors must be about packets from the receiver to the
 * endpoint. Otherwise it could reset connections of the host and of its peers,
 * and lower their path MTUs. Later fragments pass: they have no meaning without
 * the first one.
 */
__verified_once enum reason
icmp_check_endpoint(struct __sk_buff *skb, struct packet *pkt)
{
	struct icmp_quoted quoted;
	struct scratch *scratch;
	enum reason reason;
	__u32 end;

	if (!pkt)
		return REASON_KERNEL_ERROR;
	reason = parse_l4(skb, pkt);
	if (reason || !packet_starts_icmp_error(pkt))
		return reason;
	scratch = scratch_get();
	if (!scratch)
		return REASON_KERNEL_ERROR;
	/* The padding of a first fragment is not quoted. */
	end = pkt->l4 + sizeof(struct icmp) +
	      (address_is_ipv4(&pkt->dst) ? sizeof(struct iphdr) :
					    sizeof(struct ipv6hdr));
	if (end > icmp_end(skb, pkt))
		return REASON_UNKNOWN_FLOW;
	quoted.back = &scratch->reply;
	icmp_read(skb, pkt, NETWORK_OUTSIDE, &quoted);
	if (!address_equal(&quoted.back->src, &pkt->src) ||
	    !address_equal(&quoted.back->dst, &pkt->dst))
		return REASON_UNKNOWN_FLOW;
	return REASON_NONE;
}

/* Writes @new over an address of the quoted packet. Gives @sum plus the change,
 * or a number below 0 on failure. */
static __always_inline __s64 icmp_write_address(struct __sk_buff *skb, __u32 at,
						const struct address *old,
						const struct address *new,
						__s64 sum)
{
	const __be32 *from = old->word, *to = new->word;
	__u32 size = sizeof(*new);

	if (address_is_ipv4(old)) {
		from += 3;
		to += 3;
		size = sizeof(*to);
	}
	if (sum < 0 || bpf_skb_store_bytes(skb, at, to, size, 0))
		return -1;
	return address_is_ipv4(old) ?
		       bpf_csum_diff((__be32 *)from, sizeof(*from),
				     (__be32 *)to, sizeof(*to), sum) :
		       bpf_csum_diff((__be32 *)from, sizeof(*old), (__be32 *)to,
				     sizeof(*new), sum);
}

/* The offset of the transport checksum in the quoted packet; 0 if there is
 * none, or if it is not quoted. */
static __always_inline __u32 icmp_checksum_at(struct __sk_buff *skb,
					      const struct packet *pkt,
					      const struct icmp_quoted *quoted)
{
	__u32 at = quoted->l4;
	__sum16 check;

	switch (quoted->back->protocol) {
	case IPPROTO_TCP:
		at += offsetof(struct tcphdr, check);
		break;
	case IPPROTO_UDP:
		at += offsetof(struct udphdr, check);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		at += offsetof(struct icmp, checksum);
		break;
	default:
		return 0;
	}
	if (at + sizeof(check) > icmp_end(skb, pkt) ||
	    bpf_skb_load_bytes(skb, at, &check, sizeof(check)))
		return 0;
	return quoted->back->protocol == IPPROTO_UDP && !check ? 0 : at;
}

/*
 * Translates the quoted packet back into the packet that the side with key @to
 * sent. Updates the error's own checksum by the sum of all changes: a checksum
 * in the quoted packet cancels out the changes of the fields that it covers.
 * Sums are in one's complement, where ~a is -a.
 */
static __noinline enum reason
icmp_translate_quoted(struct __sk_buff *skb, const struct packet *pkt,
		      struct icmp_quoted *quoted, const struct flow_key *to)
{
	const struct flow_key *back = quoted->back;
	bool ipv4 = address_is_ipv4(&pkt->dst);
	bool has_ports = packet_has_ports(back->protocol);
	__u32 at = quoted->l3 + (ipv4 ? offsetof(struct iphdr, saddr) :
					offsetof(struct ipv6hdr, saddr));
	__u32 size = ipv4 ? sizeof(__be32) : sizeof(struct address);
	/* Only one of the two ports of an echo is the identifier. */
	__be16 before[2] = { has_ports ? back->dport :
					 back->dport | back->sport,
			     has_ports ? back->sport : 0 };
	__be16 after[2] = { has_ports ? to->sport : to->sport | to->dport,
			    has_ports ? to->dport : 0 };
	__s64 addresses, all, change;

	addresses = icmp_write_address(skb, at, &back->dst, &to->src, 0);
	addresses = icmp_write_address(skb, at + size, &back->src, &to->dst,
				       addresses);
	if (addresses < 0 ||
	    (ipv4 && bpf_l3_csum_replace(
			     skb, quoted->l3 + offsetof(struct iphdr, check), 0,
			     addresses, 0)))
		return REASON_KERNEL_ERROR;
	if (has_ports ?
		    bpf_skb_store_bytes(skb, quoted->l4, after, sizeof(after),
					0) :
		    bpf_skb_store_bytes(skb,
					quoted->l4 + offsetof(struct icmp, id),
					after, sizeof(after[0]), 0))
		return REASON_KERNEL_ERROR;

	/* Only the checksum of ICMPv4 covers no addresses. */
	all = bpf_csum_diff((__be32 *)before, sizeof(before), (__be32 *)after,
			    sizeof(after),
			    back->protocol == IPPROTO_ICMP ? 0 : addresses);
	at = icmp_checksum_at(skb, pkt, quoted);
	if (at) {
		change = 0;
		if (ipv4 && back->protocol != IPPROTO_ICMP)
			change = (__u32)~addresses;
		if (bpf_l4_csum_replace(skb, at, 0, all,
					back->protocol == IPPROTO_UDP ?
						BPF_F_MARK_MANGLED_0 :
						0))
			return REASON_KERNEL_ERROR;
	} else {
		change = all;
		if (ipv4 && back->protocol != IPPROTO_ICMP)
			change = bpf_csum_diff((__be32 *)before, sizeof(before),
					       (__be32 *)after, sizeof(after),
					       0);
	}
	if (bpf_l4_csum_replace(skb, pkt->l4 + offsetof(struct icmp, checksum),
				0, change, 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/*
 * Finds the known flow that the error from @network is about. Afterwards
 * scratch->to is the key of the side that gets the error, scratch->reply the
 * key of packets in the other direction than the quoted one, and the decision
 * has what icmp_translate() needs. An error neither ends the flow nor keeps it
 * alive: RFC 5508 REQ-3, RFC 5382 REQ-9, RFC 4787 REQ-12.
 */
static __noinline enum reason
icmp_find(struct __sk_buff *skb, const struct packet *pkt, __u32 network)
{
	struct scratch *scratch = scratch_get();
	struct icmp_quoted quoted;
	enum flow_side side;
	enum reason reason;
	struct flow *flow;
	bool router;
	__u32 slot;

	if (!scratch)
		return REASON_KERNEL_ERROR;
	quoted.back = &scratch->reply;
	reason = icmp_read(skb, pkt, network, &quoted);
	if (reason)
		return reason;
	flow = flow_find_to(scratch, quoted.back, &side, &slot);
	if (!flow || !address_equal(&pkt->dst, &quoted.back->dst))
		return REASON_UNKNOWN_FLOW;
	router = !address_equal(&pkt->src, &quoted.back->src);
	/* An endpoint may send errors only about packets to itself. */
	if (network != NETWORK_OUTSIDE && router)
		return REASON_UNKNOWN_FLOW;
	scratch->decision.quoted_l3 = quoted.l3;
	scratch->decision.quoted_l4 = quoted.l4;
	scratch->decision.router = router;
	/* The device for an error that goes back by lo: see loopback.h. */
	scratch->decision.ifindex = flow->uplink;
	return REASON_NONE;
}

/* Translates an error after icmp_find(). The error of a router on the way keeps
 * the router's address. */
static __always_inline enum reason
icmp_translate(struct __sk_buff *skb, struct packet *pkt,
	       struct scratch *scratch)
{
	struct icmp_quoted quoted = {
		.l3 = scratch->decision.quoted_l3,
		.l4 = scratch->decision.quoted_l4,
		.back = &scratch->reply,
	};
	const struct flow_key *to = &scratch->to;
	enum reason reason = icmp_translate_quoted(skb, pkt, &quoted, to);

	if (!reason && !scratch->decision.router)
		reason = nat_write(skb, pkt, NAT_SOURCE, &to->dst, 0);
	if (!reason)
		reason = nat_write(skb, pkt, NAT_DESTINATION, &to->src, 0);
	return reason;
}

#endif
