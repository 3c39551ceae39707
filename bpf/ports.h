/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Shares of the ports towards one destination. Each address of the host has
 * 65,535 ports towards each destination. An endpoint may have as many of them
 * as are still free beside two reserves. One reserve is for the host alone, the
 * other for endpoints that have few ports. So other endpoints find a port too.
 *
 * A count-min sketch counts the ports: in two cells for an endpoint and a
 * destination, and in two cells for a destination and all endpoints. Several
 * counts may share a cell. So a cell counts too much or right, never too
 * little, and the lesser of the two is used. A hash with a secret chooses the
 * cells, so an endpoint cannot aim at the cells of another.
 */
#ifndef EBPNET_PORTS_H
#define EBPNET_PORTS_H

#include "config.h"
#include "limits.h"

enum ports_rule {
	/* RFC 4787 REQ-3 a, RFC 5382 REQ-7: a port below may have a meaning. */
	FIRST_USER_PORT = 1024,
	LAST_PORT = 65535,
	/* Each reserve is one sixteenth of the ports. */
	PORTS_RESERVE = 16,
	/* An endpoint has few ports if it has fewer than ports / PORTS_FEW. */
	PORTS_FEW = 4096,
};

/* Narrows a range of ports to the class of @own: below FIRST_USER_PORT, or not.
 * The range stays as it is if it has no port of that class. All ports are in
 * host order. */
static __always_inline void ports_of_class(__u32 own, __u32 *first, __u32 *last)
{
	if (own < FIRST_USER_PORT && *first < FIRST_USER_PORT) {
		if (*last >= FIRST_USER_PORT)
			*last = FIRST_USER_PORT - 1;
	} else if (*first < FIRST_USER_PORT && *last >= FIRST_USER_PORT) {
		*first = FIRST_USER_PORT;
	}
}

struct ports_sip {
	__u64 a, b, c, d;
};

static __always_inline __u64 ports_rotate(__u64 x, __u32 bits)
{
	return x << bits | x >> (64 - bits);
}

static __always_inline void ports_round(struct ports_sip *sip)
{
	sip->a += sip->b;
	sip->b = ports_rotate(sip->b, 13) ^ sip->a;
	sip->a = ports_rotate(sip->a, 32);
	sip->c += sip->d;
	sip->d = ports_rotate(sip->d, 16) ^ sip->c;
	sip->a += sip->d;
	sip->d = ports_rotate(sip->d, 21) ^ sip->a;
	sip->c += sip->b;
	sip->b = ports_rotate(sip->b, 17) ^ sip->c;
	sip->c = ports_rotate(sip->c, 32);
}

static __always_inline void ports_mix(struct ports_sip *sip, __u64 word)
{
	sip->d ^= word;
	ports_round(sip);
	sip->a ^= word;
}

static __always_inline void
ports_mix_address(struct ports_sip *sip, const struct address *address)
{
	ports_mix(sip, (__u64)address->word[0] << 32 | address->word[1]);
	ports_mix(sip, (__u64)address->word[2] << 32 | address->word[3]);
}

/* Chooses the cells of @owner's ports towards a destination by SipHash-1-3.
 * @reply is the key of packets from there; its destination port is left out. */
static __noinline __u32 ports_place(const struct flow_key *reply, __u32 owner,
				    __u32 class)
{
	__u32 key = 0;
	const struct port_secret *secret =
		bpf_map_lookup_elem(&port_secrets, &key);
	struct ports_sip sip;

	if (!secret)
		return 0;
	sip.a = secret->first ^ 0x736f6d6570736575;
	sip.b = secret->second ^ 0x646f72616e646f6d;
	sip.c = secret->first ^ 0x6c7967656e657261;
	sip.d = secret->second ^ 0x7465646279746573;
	ports_mix_address(&sip, &reply->src);
	ports_mix_address(&sip, &reply->dst);
	ports_mix(&sip, (__u64)owner << 32 | class << 24 |
				(__u32)reply->protocol << 16 | reply->sport);
	sip.c ^= 0xff;
	for (int i = 0; i < 3; i++)
		ports_round(&sip);
	return (sip.a ^ sip.b ^ sip.c ^ sip.d) | 1; /* 0 is none */
}

static __always_inline __u32 *ports_cell(__u32 row, __u32 place)
{
	__u32 at = row * PORT_CELLS +
		   (row & 1 ? place / PORT_CELLS : place % PORT_CELLS);

	return bpf_map_lookup_elem(&port_counts, &at);
}

/* The count at @place in a pair of rows: the lesser of two cells. */
static __always_inline __u32 ports_counted(__u32 row, __u32 place)
{
	const __u32 *one = ports_cell(row, place),
		    *other = ports_cell(row + 1, place);

	if (!one || !other)
		return 0;
	return *one < *other ? *one : *other;
}

/* Adds @change to the counts at the places @own and @all. */
static __noinline void ports_count(__u32 own, __u32 all, int change)
{
	for (__u32 row = 0; row < PORT_ROWS; row++) {
		__u32 *cell = ports_cell(row, row < PORT_ROWS_ALL ? own : all);

		if (cell)
			__sync_fetch_and_add(cell, change);
	}
}

/* Chooses the cells that count the port of the flow being opened. Narrows
 * @first and @last to the class of the original side's own port. */
static __always_inline void
ports_note(struct scratch *scratch, __u32 *first, __u32 *last)
{
	__u32 own = bpf_ntohs(scratch->original.sport);

	ports_of_class(own, first, last);
	scratch->place_own = ports_place(&scratch->reply, scratch->owner,
					 *last < FIRST_USER_PORT);
	scratch->place_all = ports_place(&scratch->reply, OWNER_ALL,
					 *last < FIRST_USER_PORT);
}

/* Whether scratch->owner may have one more port of @first to @last towards the
 * destination of scratch->reply. */
static __always_inline enum reason
ports_check(struct scratch *scratch, __u32 first, __u32 last)
{
	__u32 own, all, ports, reserve;
	struct refused *refusals;

	ports_note(scratch, &first, &last);
	own = ports_counted(0, scratch->place_own);
	all = ports_counted(PORT_ROWS_ALL, scratch->place_all);
	ports = last - first + 1;
	reserve = ports / PORTS_RESERVE;
	if (!scratch->max_ports || own < scratch->max_ports) {
		if (own < ports / PORTS_FEW && all < ports - reserve)
			return REASON_NONE;
		ports -= 2 * reserve;
		if (all < ports && own < ports - all)
			return REASON_NONE;
	}
	if (!own)
		return REASON_PORTS_EXHAUSTED;
	refusals = limits_refusals(scratch->owner);
	if (refusals && !dry_run)
		__sync_fetch_and_add(&refusals->ports, 1);
	return REASON_PORT_LIMIT;
}

#endif
