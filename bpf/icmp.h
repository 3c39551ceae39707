/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors: those that others send about packets of translated flows, which
 * are translated with the packet that they quote (RFC 5508, 4), and those that
 * the datapath sends itself.
 */
#ifndef EBPNET_ICMP_H
#define EBPNET_ICMP_H

#include "search.h"

/* What every error quotes of a transport header: RFC 792. */
struct icmp_ports {
	__be16 word[4];
};
_Static_assert(sizeof(struct icmp_ports) == 8, "struct icmp_ports");

/* The quoted packet: where it is, and the key of packets that go back for it. */
struct icmp_quoted {
	__u32 l3;
	__u32 l4;
	struct flow_key *back;
};

/* Of an echo the word with its identifier, on the asking side. */
static __always_inline enum reason
icmp_read_ports(struct __sk_buff *skb, const struct packet *pkt,
		struct icmp_quoted *quoted)
{
	struct icmp_ports ports;

	if (bpf_skb_load_bytes(skb, quoted->l4, &ports, sizeof(ports)))
		return REASON_MALFORMED;
	if (protocol_has_ports(quoted->back->protocol)) {
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
	if (ip.frag_off & bpf_htons(IP_OFFSET_MASK))
		return REASON_UNKNOWN_FLOW;
	quoted->l4 = quoted->l3 + ip.ihl * 4;
	quoted->back->src = address_from_ipv4(ip.daddr);
	quoted->back->dst = address_from_ipv4(ip.saddr);
	quoted->back->protocol = ip.protocol;
	return REASON_NONE;
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
	pkt.protocol = ip6.nexthdr;
	quoted->l4 = quoted->l3 + sizeof(ip6);
	reason = parse_extensions(skb, &pkt, &quoted->l4);
	if (reason)
		return reason;
	if (pkt.fragment == FRAGMENT_LATER)
		return REASON_UNKNOWN_FLOW;
	__builtin_memcpy(&quoted->back->src, &ip6.daddr, sizeof(ip6.daddr));
	__builtin_memcpy(&quoted->back->dst, &ip6.saddr, sizeof(ip6.saddr));
	quoted->back->protocol = pkt.protocol;
	return REASON_NONE;
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
	return reason ? reason : icmp_read_ports(skb, pkt, quoted);
}

/* Writes @new over an address of the quoted packet. Gives @sum and what has
 * changed, or less than 0. */
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

/* Where the checksum of the quoted packet's transport is; 0 if it has none,
 * or it is not quoted. */
static __always_inline __u32 icmp_checksum_at(struct __sk_buff *skb,
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
	if (bpf_skb_load_bytes(skb, at, &check, sizeof(check)))
		return 0;
	return quoted->back->protocol == IPPROTO_UDP && !check ? 0 : at;
}

/*
 * Turns the quoted packet into what the side that sends with key @to had sent,
 * and mends the error's own checksum by what has changed in sum: the checksums
 * in the quoted packet make up for what they cover. Sums are of the one's
 * complement, in which ~a is -a.
 */
static __noinline enum reason
icmp_translate_quoted(struct __sk_buff *skb, const struct packet *pkt,
		      struct icmp_quoted *quoted, const struct flow_key *to)
{
	const struct flow_key *back = quoted->back;
	bool ipv4 = address_is_ipv4(&pkt->dst);
	bool has_ports = protocol_has_ports(back->protocol);
	__u32 at = quoted->l3 + (ipv4 ? offsetof(struct iphdr, saddr) :
					offsetof(struct ipv6hdr, saddr));
	__u32 size = ipv4 ? sizeof(__be32) : sizeof(struct address);
	/* Of an echo only one side has the identifier. */
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

	/* ICMP's checksum, other than the rest, covers no address. */
	all = bpf_csum_diff((__be32 *)before, sizeof(before), (__be32 *)after,
			    sizeof(after),
			    back->protocol == IPPROTO_ICMP ? 0 : addresses);
	at = icmp_checksum_at(skb, quoted);
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
 * Translates the error @pkt from @network about a packet of a known flow, and
 * says in @to_network whom it is for. It is no packet of the flow, which it
 * neither ends nor keeps alive: RFC 5508 REQ-3, RFC 5382 REQ-9, RFC 4787
 * REQ-12.
 */
__verified_once enum reason
icmp_translate(struct __sk_buff *skb, struct packet *pkt, __u32 network,
	       __u32 *to_network)
{
	struct scratch *scratch = scratch_get();
	struct icmp_quoted quoted;
	const struct flow_key *to;
	enum flow_side side;
	enum reason reason;
	struct flow *flow;
	__u32 slot;

	if (!pkt || !to_network || !scratch)
		return REASON_KERNEL_ERROR;
	quoted.back = &scratch->answer;
	reason = icmp_read(skb, pkt, network, &quoted);
	if (reason)
		return reason;
	flow = flow_find(quoted.back, &side, &slot);
	if (!flow || !address_equal(&pkt->dst, &quoted.back->dst))
		return REASON_UNKNOWN_FLOW;
	/* An endpoint has no packets to judge but those to itself. */
	if (network != NETWORK_OUTSIDE &&
	    !address_equal(&pkt->src, &quoted.back->src))
		return REASON_UNKNOWN_FLOW;
	to = flow_other(flow, side);
	*to_network = to->network;

	reason = icmp_translate_quoted(skb, pkt, &quoted, to);
	/* A router on the way speaks with its own address. */
	if (!reason && address_equal(&pkt->src, &quoted.back->src))
		reason = nat_write(skb, pkt, NAT_SOURCE, &to->dst, 0);
	if (!reason)
		reason = nat_write(skb, pkt, NAT_DESTINATION, &to->src, 0);
	return reason;
}

/* An error that the datapath sends. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 mtu; /* IPv4: of the way on, or 0; IPv6 has it in 32 bits */
};

/* As many errors a second are sent to one endpoint, and as many at once, as
 * Linux sends by default (icmp_msgs_per_sec, icmp_msgs_burst): RFC 1812,
 * 4.3.2.8. */
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
	else if (*due - now > ICMP_BURST)
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

/* Where an error's headers go: behind the Ethernet header. */
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
	return !bpf_skb_store_bytes(skb, ICMP_AT, &headers, sizeof(headers), 0);
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
	sum = bpf_csum_diff(NULL, 0, (__be32 *)from, sizeof(*from), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&pkt->src, sizeof(pkt->src),
			    sum);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	headers.icmp.checksum = csum_fold(bpf_csum_diff(
		NULL, 0, (__be32 *)&headers.icmp, sizeof(headers.icmp), sum));
	return !bpf_skb_store_bytes(skb, ICMP_AT, &headers, sizeof(headers), 0);
}

/* No error is about an error, nor about what has no header to tell it by. */
static __always_inline bool icmp_is_unanswerable(const struct packet *pkt)
{
	return pkt->fragment == FRAGMENT_LATER ||
	       ((pkt->protocol == IPPROTO_ICMP ||
		 pkt->protocol == IPPROTO_ICMPV6) &&
		!pkt->echo);
}

/*
 * Makes the packet an error about itself, to its sender and from the gateway
 * at @from; false if there is to be none (RFC 1122, 3.2.2; RFC 4443, 2.4). It
 * has to be as it came.
 */
__verified_once bool
icmp_reply(struct __sk_buff *skb, const struct packet *pkt, __u32 endpoint,
	   const struct address *from, const struct icmp_error *error)
{
	struct scratch *scratch = scratch_get();
	struct mac macs[2];
	__u32 at, length;
	bool ipv4;
	__s64 sum;
	__u8 tos;

	if (!pkt || !from || !error || !scratch || icmp_is_unanswerable(pkt) ||
	    !icmp_may_send(endpoint))
		return false;
	ipv4 = address_is_ipv4(&pkt->src);
	at = ICMP_AT + (ipv4 ? sizeof(struct icmp4_headers) :
			       sizeof(struct icmp6_headers));
	macs[0] = pkt->src_mac;
	macs[1] = pkt->dst_mac;
	length = packet_said_length(skb, pkt);
	if (skb->gso_size || length > skb->len - pkt->l3)
		length = skb->len - pkt->l3;
	if (length > ICMP_QUOTE)
		length = ICMP_QUOTE;
	barrier_var(length); /* the verifier has to see that it is not 0 */
	if (length < sizeof(struct iphdr))
		return false;
	__builtin_memset(scratch->quote, 0, sizeof(scratch->quote));
	if (bpf_skb_load_bytes(skb, pkt->l3, scratch->quote, length))
		return false;
	/* As urgent as what it is about: RFC 1812, 4.3.2.5. */
	tos = scratch->quote[1];
	if (!ipv4)
		tos = scratch->quote[0] << 4 | scratch->quote[1] >> 4;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)scratch->quote,
			    sizeof(scratch->quote), 0);
	return !bpf_skb_change_tail(skb, at + length, 0) &&
	       !bpf_skb_store_bytes(skb, 0, macs, sizeof(macs),
				    BPF_F_INVALIDATE_HASH) &&
	       !bpf_skb_store_bytes(skb, at, scratch->quote, length, 0) &&
	       (ipv4 ? icmp_write_ipv4(skb, pkt, from, error, tos, length,
				       sum) :
		       icmp_write_ipv6(skb, pkt, from, error, tos, length,
				       sum));
}

#endif
