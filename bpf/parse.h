/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The parsers: one for each header. Packets are hostile, so all parsers keep
 * one contract. A parser checks that its header lies inside the IP packet
 * (Ethernet and IP: inside the frame), and that the header does not contradict
 * itself. It then fills its own fields of struct packet, and returns
 * REASON_NONE. Otherwise it returns a reason, and only the fields of the
 * headers before are valid.
 */
#ifndef EBPNET_PARSE_H
#define EBPNET_PARSE_H

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "address.h"
#include "ctx.h"

#define IP_DF		   0x4000
#define IP_MF		   0x2000
#define IP_OFFSET_MASK	   0x1fff
#define IP6_OFFSET_MASK	   0xfff8
#define IP6_MORE_FRAGMENTS 0x0001

/* The longest outer headers of a frame: Ethernet, IPv4 with options, GRE with
 * all its fields. */
#define MAX_OUTER_LENGTH (sizeof(struct ethhdr) + 60 + 16)

/* The most IPv6 extension headers that are followed. */
#define MAX_EXTENSIONS 4

/* An Ethernet header. */
struct frame {
	struct mac dst;
	struct mac src;
	__be16 ethertype;
};
_Static_assert(sizeof(struct frame) == ETH_HLEN, "struct frame");

/* RFC 792, RFC 4443: the common start of ICMP and ICMPv6, as in an echo. */
struct icmp {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};
_Static_assert(sizeof(struct icmp) == 8, "struct icmp");

enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP6_UNREACHABLE = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_TIME_EXCEEDED = 3,
	ICMP6_PARAMETER_PROBLEM = 4,
	ICMP6_ECHO_REQUEST = 128,
	ICMP6_ECHO_REPLY = 129,
};

/* The code of ICMP_UNREACHABLE that reports an MTU: RFC 1191. */
#define ICMP_FRAG_NEEDED 4

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* The start of SCTP's header: RFC 9260, 3.1. The last word of it is a checksum,
 * which covers no address. */
struct sctp {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum;
};
_Static_assert(sizeof(struct sctp) == 12, "struct sctp");

/* Whether a packet is an ICMP echo, which has an identifier for a port. */
enum echo {
	ECHO_NONE,
	ECHO_REQUEST,
	ECHO_REPLY,
};

/* Only the first fragment of a datagram has its transport header. */
enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER,
};

/*
 * Whether the length in an IPv4 header at @l3 is valid. The kernel writes 0 for
 * a superframe of TCP with more than 64 KB (BIG TCP, Linux 6.3): the length is
 * then that of the frame.
 */
static __always_inline bool
parse_ipv4_length(const ctx_t *ctx, const struct iphdr *ip, __u32 l3)
{
	__u32 length = bpf_ntohs(ip->tot_len), header = ip->ihl * 4;

	if (!ctx_segment_size(ctx))
		return length >= header && ctx_has(ctx, l3 + length);
	return length >= header || (!length && ip->protocol == IPPROTO_TCP);
}

/* The hop-by-hop header in which the kernel writes the length of a superframe
 * of IPv6 with more than 64 KB (BIG TCP, Linux 5.19). It removes the header
 * when it segments the superframe. */
#define JUMBO_LENGTH 8

static __always_inline enum reason
parse_ipv4(ctx_t *ctx, struct packet *pkt, const struct iphdr *ip, void *end)
{
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 ||
	    !parse_ipv4_length(ctx, ip, pkt->l3))
		return REASON_MALFORMED;
	pkt->l3_length = ip->ihl * 4;
	pkt->length = bpf_ntohs(ip->tot_len);
	if (ctx_segment_size(ctx) && !ip->tot_len)
		pkt->length = ctx_length(ctx) - pkt->l3;
	pkt->src = address_from_ipv4(ip->saddr);
	pkt->dst = address_from_ipv4(ip->daddr);
	pkt->protocol = ip->protocol;
	pkt->ttl = ip->ttl;
	pkt->tos = ip->tos;
	pkt->fragment = FRAGMENT_NONE;
	if (!(ip->frag_off & bpf_htons(IP_DF)) && ip->ihl == 5 &&
	    !ctx_segment_size(ctx))
		pkt->flags |= PACKET_FRAGMENTABLE;
	if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET_MASK)) {
		pkt->fragment = ip->frag_off & bpf_htons(IP_OFFSET_MASK) ?
					FRAGMENT_LATER :
					FRAGMENT_FIRST;
		pkt->fragment_id = ip->id;
	}
	return REASON_NONE;
}

static __always_inline enum reason
parse_ipv6(ctx_t *ctx, struct packet *pkt, const struct ipv6hdr *ip6, void *end)
{
	if ((void *)(ip6 + 1) > end || ip6->version != 6 ||
	    (!ctx_segment_size(ctx) &&
	     !ctx_has(ctx,
		      pkt->l3 + sizeof(*ip6) + bpf_ntohs(ip6->payload_len))))
		return REASON_MALFORMED;
	pkt->l3_length = sizeof(*ip6);
	pkt->length = sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
	if (ctx_segment_size(ctx) && !ip6->payload_len)
		pkt->length = ctx_length(ctx) - pkt->l3;
	__builtin_memcpy(&pkt->src, &ip6->saddr, sizeof(pkt->src));
	__builtin_memcpy(&pkt->dst, &ip6->daddr, sizeof(pkt->dst));
	/* A mapped address would match the IPv4 address. */
	if (address_is_ipv4(&pkt->src) || address_is_ipv4(&pkt->dst))
		return REASON_MALFORMED;
	if (ctx_segment_size(ctx) && !ip6->payload_len &&
	    ip6->nexthdr == IPPROTO_HOPOPTS)
		pkt->flags |= PACKET_JUMBO;
	pkt->protocol = ip6->nexthdr;
	pkt->ttl = ip6->hop_limit;
	pkt->tos = ip6->priority << 4 | ip6->flow_lbl[0] >> 4;
	pkt->fragment = FRAGMENT_NONE;
	return REASON_NONE;
}

/* Reads Ethernet at offset @start, and the fixed IP header. Of another
 * ethertype, only the type is stored; l3 is then the start of its header. */
static __always_inline enum reason
parse_l3(ctx_t *ctx, struct packet *pkt, __u32 start)
{
	void *data, *end, *l3;
	struct ethhdr *eth;

	/* Without it the compiler would remove this check, because it knows
	 * @start. The verifier does not. */
	barrier_var(start);
	if (start > MAX_OUTER_LENGTH ||
	    !ctx_reach(ctx, start + sizeof(*eth) + sizeof(struct iphdr)))
		return REASON_MALFORMED;
	/* The kernel's marks describe the outer packet, not an inner frame. */
	if ((start || !ctx_is_ipv4(ctx)) &&
	    !ctx_reach(ctx, start + sizeof(*eth) + sizeof(struct ipv6hdr)))
		return REASON_MALFORMED;

	data = ctx_data(ctx);
	end = ctx_end(ctx);
	eth = data + start;
	l3 = eth + 1;
	if (l3 > end)
		return REASON_MALFORMED;
	__builtin_memcpy(&pkt->dst_mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(&pkt->src_mac, eth->h_source, ETH_ALEN);
	pkt->ethertype = eth->h_proto;
	pkt->l3 = start + sizeof(*eth);
	pkt->length = 0;
	pkt->l4 = 0;
	pkt->tos = 0;
	pkt->flags = 0;
	switch (pkt->ethertype) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(ctx, pkt, l3, end);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(ctx, pkt, l3, end);
	}
	return REASON_NONE;
}

/* Follows IPv6 extension headers to the transport header. */
static __always_inline enum reason
parse_extensions(ctx_t *ctx, struct packet *pkt, __u32 *offset)
{
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct {
			__u8 next;
			__u8 length;
			__be16 fragment;
			__be32 id;
		} header;

		switch (pkt->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return REASON_NONE;
		}
		if (ctx_load(ctx, *offset, &header, sizeof(header)))
			return REASON_MALFORMED;
		if (pkt->protocol == IPPROTO_FRAGMENT) {
			*offset += 8;
			pkt->protocol = header.next;
			pkt->fragment_id = header.id;
			/* Data follows, and no header. */
			if (header.fragment & bpf_htons(IP6_OFFSET_MASK)) {
				pkt->fragment = FRAGMENT_LATER;
				return REASON_NONE;
			}
			/* A fragment that is the whole packet is no fragment:
			 * RFC 6946. */
			if (header.fragment & bpf_htons(IP6_MORE_FRAGMENTS))
				pkt->fragment = FRAGMENT_FIRST;
			continue;
		}
		*offset += 8 * (header.length + 1);
		pkt->protocol = header.next;
	}
	switch (pkt->protocol) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
	case IPPROTO_FRAGMENT:
		return REASON_MALFORMED;
	}
	return REASON_NONE;
}

static __always_inline enum echo parse_echo(const struct packet *pkt, __u8 type)
{
	bool ipv4 = pkt->ethertype == bpf_htons(ETH_P_IP);

	if (ipv4 != (pkt->protocol == IPPROTO_ICMP))
		return ECHO_NONE;
	if (type == (ipv4 ? ICMP_ECHO_REQUEST : ICMP6_ECHO_REQUEST))
		return ECHO_REQUEST;
	if (type == (ipv4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY))
		return ECHO_REPLY;
	return ECHO_NONE;
}

/* Whether the IP packet has @length bytes from @offset on. */
static __always_inline bool
parse_has(const struct packet *pkt, __u32 offset, __u32 length)
{
	return offset + length <= pkt->l3 + pkt->length;
}

static __always_inline enum reason parse_tcp(ctx_t *ctx, struct packet *pkt)
{
	struct tcphdr tcp;

	if (!parse_has(pkt, pkt->l4, sizeof(tcp)) ||
	    ctx_load(ctx, pkt->l4, &tcp, sizeof(tcp)))
		return REASON_MALFORMED;
	pkt->sport = tcp.source;
	pkt->dport = tcp.dest;
	pkt->tcp_flags = ((__u8 *)&tcp)[13];
	pkt->l4_length = tcp.doff * 4;
	/* The next fragment may have the rest of the options. */
	if (pkt->l4_length < sizeof(tcp) ||
	    (!pkt->fragment && !parse_has(pkt, pkt->l4, pkt->l4_length)))
		return REASON_MALFORMED;
	pkt->sequence = bpf_ntohl(tcp.seq);
	pkt->acknowledged = bpf_ntohl(tcp.ack_seq);
	return REASON_NONE;
}

static __always_inline enum reason parse_udp(ctx_t *ctx, struct packet *pkt)
{
	struct udphdr udp;

	if (!parse_has(pkt, pkt->l4, sizeof(udp)) ||
	    ctx_load(ctx, pkt->l4, &udp, sizeof(udp)))
		return REASON_MALFORMED;
	pkt->sport = udp.source;
	pkt->dport = udp.dest;
	if (!udp.check)
		pkt->flags |= PACKET_UNSUMMED;
	return REASON_NONE;
}

static __always_inline enum reason parse_sctp(ctx_t *ctx, struct packet *pkt)
{
	struct sctp sctp;

	if (!parse_has(pkt, pkt->l4, sizeof(sctp)) ||
	    ctx_load(ctx, pkt->l4, &sctp, sizeof(sctp)))
		return REASON_MALFORMED;
	pkt->sport = sctp.source;
	pkt->dport = sctp.dest;
	return REASON_NONE;
}

/* The identifier of an echo is the port of the side that asks. */
static __always_inline enum reason parse_icmp(ctx_t *ctx, struct packet *pkt)
{
	struct icmp icmp;

	if (!parse_has(pkt, pkt->l4, sizeof(icmp)) ||
	    ctx_load(ctx, pkt->l4, &icmp, sizeof(icmp)))
		return REASON_MALFORMED;
	pkt->icmp_type = icmp.type;
	pkt->echo = parse_echo(pkt, icmp.type);
	if (pkt->echo == ECHO_REQUEST)
		pkt->sport = icmp.id;
	else if (pkt->echo == ECHO_REPLY)
		pkt->dport = icmp.id;
	return REASON_NONE;
}

/* Reads the extension headers of IPv6 and the fields of the transport header
 * that flows need. For a protocol without ports, and for a later fragment, they
 * stay zero. */
__verified_once enum reason parse_l4(ctx_t *ctx, struct packet *pkt)
{
	enum reason reason;
	__u32 offset;

	if (!pkt)
		return REASON_KERNEL_ERROR;
	if (pkt->l4)
		return REASON_NONE;
	pkt->sport = pkt->dport = 0;
	pkt->tcp_flags = pkt->icmp_type = pkt->l4_length = 0;
	pkt->echo = ECHO_NONE;

	offset = pkt->l3 + pkt->l3_length;
	if (pkt->ethertype != bpf_htons(ETH_P_IP)) {
		reason = parse_extensions(ctx, pkt, &offset);
		if (reason)
			return reason;
		if (!parse_has(pkt, offset, 0))
			return REASON_MALFORMED;
	}
	pkt->l4 = offset;
	if (pkt->fragment == FRAGMENT_LATER)
		return REASON_NONE;
	switch (pkt->protocol) {
	case IPPROTO_TCP:
		return parse_tcp(ctx, pkt);
	case IPPROTO_UDP:
		return parse_udp(ctx, pkt);
	case IPPROTO_SCTP:
		return parse_sctp(ctx, pkt);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(ctx, pkt);
	}
	return REASON_NONE;
}

#endif
