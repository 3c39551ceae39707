/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Address translation between endpoints and the outside. Every flow across an
 * uplink is here, also those of networks that are not masqueraded: these are
 * "translated" to what they are, so that only answers come in.
 */
#ifndef EBPNET_NAT_H
#define EBPNET_NAT_H

#include "flow.h"
#include "route.h"

/* Where a port is looked for when the packet's own is taken: at random, as
 * those that are taken stand in rows. */
#define PORT_FIRST    1024
#define PORT_COUNT    (65536 - PORT_FIRST)
#define PORT_ATTEMPTS 128

enum nat_side {
	NAT_SOURCE,
	NAT_DESTINATION,
};

/* Writes @address and @port over the packet's source or destination, and
 * mends the checksums. */
static __always_inline enum reason
nat_write(struct __sk_buff *skb, struct packet *pkt, enum nat_side side,
	  const struct address *address, __be16 port)
{
	bool ipv4 = address_is_ipv4(&pkt->dst);
	struct address *old = side == NAT_SOURCE ? &pkt->src : &pkt->dst;
	__be16 *old_port = side == NAT_SOURCE ? &pkt->sport : &pkt->dport;
	__u32 port_at = pkt->l4 + (side == NAT_SOURCE ? 0 : 2);
	__u64 flags = 0, pseudo = BPF_F_PSEUDO_HDR;
	__u32 check_at;
	bool ok = true;

	switch (pkt->protocol) {
	case IPPROTO_TCP:
		check_at = pkt->l4 + offsetof(struct tcphdr, check);
		break;
	case IPPROTO_UDP:
		check_at = pkt->l4 + offsetof(struct udphdr, check);
		flags = BPF_F_MARK_MANGLED_0;
		break;
	case IPPROTO_ICMP:
		pseudo = 0; /* its checksum does not cover the addresses */
		/* fall through */
	default:
		check_at = pkt->l4 + offsetof(struct icmp, checksum);
		port_at = pkt->l4 + offsetof(struct icmp, id);
		break;
	}

	if (!address_equal(old, address)) {
		if (ipv4) {
			if (pseudo)
				ok = !bpf_l4_csum_replace(skb, check_at,
							  old->word[3],
							  address->word[3],
							  flags | pseudo | 4);
			ok = ok &&
			     !bpf_l3_csum_replace(
				     skb,
				     pkt->l3 + offsetof(struct iphdr, check),
				     old->word[3], address->word[3], 4) &&
			     !bpf_skb_store_bytes(
				     skb,
				     pkt->l3 + (side == NAT_SOURCE ?
							offsetof(struct iphdr,
								 saddr) :
							offsetof(struct iphdr,
								 daddr)),
				     &address->word[3], 4, 0);
		} else {
			__s64 diff = bpf_csum_diff((__be32 *)old, sizeof(*old),
						   (__be32 *)address,
						   sizeof(*address), 0);

			ok = !bpf_l4_csum_replace(skb, check_at, 0, diff,
						  flags | pseudo) &&
			     !bpf_skb_store_bytes(
				     skb,
				     pkt->l3 + (side == NAT_SOURCE ?
							offsetof(struct ipv6hdr,
								 saddr) :
							offsetof(struct ipv6hdr,
								 daddr)),
				     address, sizeof(*address), 0);
			/* A device's checksum of the whole packet, if there is
			 * one, stays as it was: the two changes cancel out.
			 * bpf_l4_csum_replace() thinks of IPv4, whose header's
			 * checksum changes too. Fails if there is none. */
			bpf_csum_update(skb, diff);
		}
	}
	if (ok && *old_port != port)
		ok = !bpf_l4_csum_replace(skb, check_at, *old_port, port,
					  flags | sizeof(port)) &&
		     !bpf_skb_store_bytes(skb, port_at, &port, sizeof(port), 0);
	*old = *address;
	*old_port = port;
	return ok ? REASON_NONE : REASON_KERNEL_ERROR;
}

/* Whether a socket of the host itself takes packets of @answer, a flow as the
 * outside answers it. */
static __always_inline bool
nat_is_hosts_own(struct __sk_buff *skb, const struct flow_key *answer)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size;

	if (answer->protocol != IPPROTO_TCP && answer->protocol != IPPROTO_UDP)
		return false;
	if (address_is_ipv4(&answer->src)) {
		tuple.ipv4.saddr = answer->src.word[3];
		tuple.ipv4.daddr = answer->dst.word[3];
		tuple.ipv4.sport = answer->sport;
		tuple.ipv4.dport = answer->dport;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &answer->src,
				 sizeof(answer->src));
		__builtin_memcpy(tuple.ipv6.daddr, &answer->dst,
				 sizeof(answer->dst));
		tuple.ipv6.sport = answer->sport;
		tuple.ipv6.dport = answer->dport;
		size = sizeof(tuple.ipv6);
	}
	if (answer->protocol == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS,
					0);
	else
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS,
				       0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

struct nat_search {
	struct __sk_buff *skb;
	const struct flow_key *opener;
	struct flow_key answer; /* its dport is sought */
	__u32 slot;
	enum reason reason;
};

/* Ends the flow of packets with @key; one that has been answered only if
 * @answered_too. False if it goes on. */
static __always_inline bool
nat_end(const struct flow_key *key, bool answered_too)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);
	struct flow *flow;
	__u32 slot;

	if (!ref)
		return true;
	slot = ref->slot;
	flow = bpf_map_lookup_elem(&flows, &slot);
	if (!flow || (flow->flags & FLOW_ANSWERED && !answered_too))
		return false;
	flow_end(flow, slot);
	return true;
}

/* Claims a port, first the packet's own. Returns 1 when the search is over. */
static int nat_try_port(__u32 attempt, void *context)
{
	struct nat_search *search = context;
	bool own = search->opener->network == NETWORK_OUTSIDE && !attempt;
	int err;

	if (attempt)
		search->answer.dport = bpf_htons(
			PORT_FIRST + bpf_get_prandom_u32() % PORT_COUNT);
	if (!own && nat_is_hosts_own(search->skb, &search->answer))
		return 0;
	err = flow_index_add(&search->answer, search->slot, FLOW_ANSWER);
	/* The host goes before an endpoint whom nobody has answered yet. */
	if (err == -EEXIST && own && nat_end(&search->answer, false))
		err = flow_index_add(&search->answer, search->slot,
				     FLOW_ANSWER);
	if (err == -EEXIST)
		return 0;
	search->reason = flow_index_reason(err);
	return 1;
}

/* Opens the flow of packets with @opener towards the outside, as from
 * @source. */
static __noinline enum reason
nat_open(struct __sk_buff *skb, const struct flow_key *opener,
	 const struct address *source)
{
	struct nat_search search = {
		.skb = skb,
		.opener = opener,
		.answer = flow_key_reverse(opener, NETWORK_OUTSIDE),
		.reason = REASON_PORTS_EXHAUSTED,
	};

	if (!flow_claim_slot(&search.slot))
		return REASON_FLOW_TABLE_FULL;
	search.answer.dst = *source;
	bpf_loop(PORT_ATTEMPTS, nat_try_port, &search, 0);
	if (search.reason) {
		flow_release_slot(search.slot);
		return search.reason;
	}
	return flow_open(search.slot, opener, &search.answer);
}

/* Translates a packet that leaves @network by @route: its source becomes
 * @source. Opens the flow if it is the first. */
static __always_inline enum reason
nat_leave(struct __sk_buff *skb, struct packet *pkt, __u32 network,
	  const struct address *source)
{
	struct flow_key key;
	enum flow_side side;
	enum reason reason;
	struct flow *flow;

	reason = parse_l4(skb, pkt);
	if (reason)
		return reason;
	if (pkt->fragment)
		return REASON_FRAGMENT;
	if (!packet_has_ports(pkt))
		return REASON_UNTRANSLATABLE;

	key = flow_key_of(pkt, network);
	flow = flow_find(&key, &side);
	/* It was opened by way of an address that is not the right one now. */
	if (flow && !address_equal(&flow->answer.dst, source)) {
		nat_end(&key, true);
		flow = NULL;
	}
	if (!flow) {
		/* Nobody outside has asked for this. */
		if (pkt->echo == ECHO_REPLY)
			return REASON_UNTRANSLATABLE;
		reason = nat_open(skb, &key, source);
		if (reason)
			return reason;
		flow = flow_find(&key, &side);
		if (!flow)
			return REASON_FLOW_TABLE_FULL;
	}
	flow_touch(flow, pkt, side);
	return nat_write(skb, pkt, NAT_SOURCE, &flow->answer.dst,
			 flow->answer.dport);
}

/* Whether @pkt of the host itself is of a translated flow, or has to open one
 * as answers to it would be taken for those of another. Not inlined, to keep
 * its key off the caller's stack. */
static __noinline bool nat_is_needed(const struct packet *pkt)
{
	struct flow_key key = flow_key_of(pkt, NETWORK_OUTSIDE);

	if (bpf_map_lookup_elem(&flow_index, &key))
		return true;
	key = flow_key_reverse(&key, NETWORK_OUTSIDE);
	return bpf_map_lookup_elem(&flow_index, &key);
}

/* The flow that a packet from the outside answers; NULL if it is none of
 * ours. After parse_l4(). */
static __always_inline struct flow *nat_find_answered(const struct packet *pkt)
{
	struct flow_key key = flow_key_of(pkt, NETWORK_OUTSIDE);
	enum flow_side side;
	struct flow *flow;

	/* With identifier 0 its key would be that of an echo reply. */
	if (pkt->echo == ECHO_REQUEST)
		return NULL;
	flow = flow_find(&key, &side);
	return flow && side == FLOW_ANSWER ? flow : NULL;
}

/* Translates a packet from the outside back to who opened @flow. */
static __always_inline enum reason
nat_return(struct __sk_buff *skb, struct packet *pkt, struct flow *flow)
{
	flow_touch(flow, pkt, FLOW_ANSWER);
	return nat_write(skb, pkt, NAT_DESTINATION, &flow->opener.src,
			 flow->opener.sport);
}

#endif
