/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The search for a port: a new flow gets the first port that makes the key of
 * its replies unique.
 */
#ifndef EBPNET_SEARCH_H
#define EBPNET_SEARCH_H

#include "nat.h"

/* How many ports are tried: the packet's own first, then others across the
 * whole range, because used ports often follow each other. */
#define PORT_ATTEMPTS 128

enum search_kind {
	SEARCH_MAPPING, /* a port of the host, for one endpoint's port alone */
	SEARCH_SHARED, /* a port of the host */
	SEARCH_HOST, /* the same for the host itself */
	SEARCH_PEER, /* the peer's port, as the endpoint sees it */
	SEARCH_GATEWAY, /* the same, at an address of the host */
};

struct search {
	ctx_t *ctx;
	enum search_kind kind;
	__u32 slot; /* of the flow to be opened; claimed */
	__u32 start; /* where the search begins, at random */
	enum reason reason;
};

/* Whether a socket of the host takes a packet. */
enum search_socket {
	SOCKET_NONE,
	SOCKET_OPEN, /* takes it from any peer */
	SOCKET_CONNECTED, /* takes it from this peer alone */
};

/* The state of an unconnected UDP socket is BPF_TCP_CLOSE. */
static __always_inline enum search_socket search_state(__u32 state)
{
	return state == BPF_TCP_LISTEN || state == BPF_TCP_CLOSE ?
		       SOCKET_OPEN :
		       SOCKET_CONNECTED;
}

/* The verifier rejects one instruction that reads two types of socket. The asm
 * statements emit no code, but keep the compiler from merging the two reads. */
static __always_inline enum search_socket
search_tcp(ctx_t *ctx, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_sock *sk =
		bpf_skc_lookup_tcp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	enum search_socket socket;

	if (!sk)
		return SOCKET_NONE;
	socket = search_state(sk->state);
	asm volatile("# tcp" : : : "memory");
	bpf_sk_release(sk);
	return socket;
}

static __always_inline enum search_socket
search_udp(ctx_t *ctx, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_sock *sk =
		bpf_sk_lookup_udp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	enum search_socket socket;

	if (!sk)
		return SOCKET_NONE;
	socket = search_state(sk->state);
	asm volatile("# udp" : : : "memory");
	bpf_sk_release(sk);
	return socket;
}

/* Whether a socket of the host takes packets with @key. */
static __noinline enum search_socket
search_socket(ctx_t *ctx, const struct flow_key *key)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv4);

	if (address_is_ipv4(&key->src)) {
		tuple.ipv4.saddr = key->src.word[3];
		tuple.ipv4.daddr = key->dst.word[3];
		tuple.ipv4.sport = key->sport;
		tuple.ipv4.dport = key->dport;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &key->src, sizeof(key->src));
		__builtin_memcpy(tuple.ipv6.daddr, &key->dst, sizeof(key->dst));
		tuple.ipv6.sport = key->sport;
		tuple.ipv6.dport = key->dport;
		size = sizeof(tuple.ipv6);
	}
	if (key->protocol == IPPROTO_TCP)
		return search_tcp(ctx, &tuple, size);
	if (key->protocol == IPPROTO_UDP)
		return search_udp(ctx, &tuple, size);
	return SOCKET_NONE;
}

/* Whether the port is published at any address. */
static __always_inline bool search_is_published(__u8 protocol, __be16 port)
{
	__u32 number = bpf_ntohs(port), at = number / PORTS_A_WORD;
	const __u64 *word;

	switch (protocol) {
	case IPPROTO_TCP:
		at += PUBLISHED_TCP * PUBLISHED_WORDS;
		break;
	case IPPROTO_UDP:
		at += PUBLISHED_UDP * PUBLISHED_WORDS;
		break;
	case IPPROTO_SCTP:
		at += PUBLISHED_SCTP * PUBLISHED_WORDS;
		break;
	default:
		return false;
	}
	word = bpf_map_lookup_elem(&published_ports, &at);
	return word && *word >> number % PORTS_A_WORD & 1;
}

/* A prime larger than half of all ports. Steps of this length visit every port
 * of a smaller range before they visit one again. */
#define PORT_STRIDE 40493

/* The port to try at @attempt, one of @first to @last. It is of the class of
 * @own, if the range has such ports. It has the parity of @own in the first
 * half of the attempts, and the other parity in the second half. All ports are
 * in host order. */
static __always_inline __u32 search_pick(const struct search *search,
					 __u32 attempt, __u32 own, __u32 first,
					 __u32 last)
{
	__u32 parity = own + (attempt >= PORT_ATTEMPTS / 2);

	ports_of_class(own, &first, &last);
	if (first < last)
		first += (first ^ parity) & 1;
	return first + 2 * ((search->start + attempt * PORT_STRIDE) %
			    ((last - first) / 2 + 1));
}

/* Whether another flow has the port in scratch->reply. */
static __always_inline bool
search_is_taken(const struct search *search, struct scratch *scratch)
{
	if (search->kind != SEARCH_MAPPING)
		return bpf_map_lookup_elem(&flow_index, &scratch->reply);
	mapping_key(&scratch->mapping, &scratch->reply);
	return bpf_map_lookup_elem(&flow_index, &scratch->mapping);
}

/* Reserves the port in scratch->reply for the flow. 0, or a negative error. */
static __always_inline int
search_take(const struct search *search, struct scratch *scratch)
{
	const struct flow_key *reply = &scratch->reply;
	int err;

	if (search->kind != SEARCH_MAPPING)
		return flow_index_add(reply, search->slot, FLOW_REPLY);
	mapping_key(&scratch->mapping, reply);
	err = flow_index_add(&scratch->mapping, search->slot, FLOW_MAPPING);
	if (err)
		return err;
	err = flow_index_add(reply, search->slot, FLOW_REPLY);
	if (err)
		flow_index_remove(&scratch->mapping, search->slot);
	return err;
}

/* Tries one port. Returns 1 when the search is over. */
static int search_try(__u32 attempt, void *context)
{
	struct search *search = context;
	struct scratch *scratch = scratch_get();
	__u32 own, port, first = first_port, last = last_port;
	bool ours =
		search->kind == SEARCH_MAPPING || search->kind == SEARCH_SHARED;
	struct flow_key *reply;
	int err;

	if (!scratch)
		return 1;
	reply = &scratch->reply;
	port = own = bpf_ntohs(scratch->original.sport);
	if (!ours) {
		first = FIRST_USER_PORT;
		last = LAST_PORT;
	}
	if (attempt || (ours && (own < first || own > last)))
		port = search_pick(search, attempt, own, first, last);
	reply->dport = bpf_htons(port);
	if (ours && search_is_published(reply->protocol, reply->dport))
		return 0;
	if (attempt && search_is_taken(search, scratch))
		return 0;
	if (search->kind != SEARCH_PEER &&
	    (search->kind != SEARCH_HOST || attempt) &&
	    search_socket(search->ctx, reply) != SOCKET_NONE)
		return 0;
	err = search_take(search, scratch);
	/* The host's own connection wins over a half-open flow of an endpoint.
	 */
	if (err == -EEXIST && search->kind == SEARCH_HOST && !attempt &&
	    flow_end_by_key(reply, FLOW_HALF_OPEN))
		err = dry_run ? 0 : search_take(search, scratch);
	if (err == -EEXIST)
		return 0;
	search->reason = flow_index_reason(err);
	return 1;
}

/* Finds a port for scratch->reply, and reserves it for the flow in
 * search->slot. */
static __always_inline enum reason search_port(struct search *search)
{
	search->start = bpf_get_prandom_u32() % LAST_PORT;
	search->reason = REASON_PORTS_EXHAUSTED;
	bpf_loop(PORT_ATTEMPTS, search_try, search, 0);
	return search->reason;
}

/* Finds a slot and a port for the flow of scratch's keys, and opens it.
 * Releases @mapping if this fails. */
static __always_inline enum reason
search_open(struct search *search, struct scratch *scratch, __u32 mapping)
{
	enum reason reason = flow_slot_claim(scratch, &search->slot);

	if (!reason) {
		/* The port is at a gateway's address, where endpoints share the
		 * ports. */
		if (search->kind == SEARCH_GATEWAY &&
		    scratch->original.network != NETWORK_LOOPBACK)
			reason = ports_check(scratch, FIRST_USER_PORT,
					     LAST_PORT);
		if (!reason)
			reason = search_port(search);
		if (!reason)
			return flow_open(scratch, search->slot, mapping,
					 FLOW_ORIGINAL);
		flow_slot_release(search->slot);
	}
	if (mapping != NO_MAPPING)
		mapping_release(mapping);
	return reason;
}

#endif
