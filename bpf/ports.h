/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Shares of the ports towards one destination. At an address of the host there
 * are 65,535 ports towards each destination. An endpoint may have as many of
 * them as are still free beside two reserves: one is the host's alone, and one
 * is for endpoints that have few. So others find one too.
 *
 * They are counted in a sketch: for an endpoint with a destination, and for a
 * destination with all, two cells each, of which the lesser one is not less
 * than what is sought. Where the cells are follows from a hash with a secret,
 * so that nobody can aim at those of another.
 */
#ifndef EBPNET_PORTS_H
#define EBPNET_PORTS_H

#include "config.h"
#include "limits.h"

/* RFC 4787 REQ-3 a, RFC 5382 REQ-7: what is below may mean something. */
#define FIRST_USER_PORT 1024
#define LAST_PORT	65535

/* Each reserve is that part of the ports. */
#define PORTS_RESERVE 16

/* An endpoint has few as long as it has less than that part of the ports. */
#define PORTS_FEW 4096

/* Narrows the ports that may be given in place of @own to those of its class,
 * below FIRST_USER_PORT or not, where there are such ports. All in host order. */
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

/* Where @owner's ports are counted by which the answers come that have @answer
 * for a key but for the port: SipHash-1-3. */
static __noinline __u32 ports_place(const struct flow_key *answer, __u32 owner,
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
	ports_mix_address(&sip, &answer->src);
	ports_mix_address(&sip, &answer->dst);
	ports_mix(&sip, (__u64)owner << 32 | class << 24 |
				(__u32)answer->protocol << 16 | answer->sport);
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

/* What the cells of a pair of rows say of @place. */
static __always_inline __u32 ports_counted(__u32 row, __u32 place)
{
	const __u32 *one = ports_cell(row, place),
		    *other = ports_cell(row + 1, place);

	if (!one || !other)
		return 0;
	return *one < *other ? *one : *other;
}

/* Counts @change flows more, or less, at the places of their ports. */
static __noinline void ports_count(__u32 own, __u32 all, int change)
{
	for (__u32 row = 0; row < PORT_ROWS; row++) {
		__u32 *cell = ports_cell(row, row < PORT_ROWS_ALL ? own : all);

		if (cell)
			__sync_fetch_and_add(cell, change);
	}
}

/* Notes where the port of the flow to be opened is to be counted, which is one
 * of @first to @last. */
static __always_inline void
ports_note(struct scratch *scratch, __u32 *first, __u32 *last)
{
	__u32 own = bpf_ntohs(scratch->opener.sport);

	ports_of_class(own, first, last);
	scratch->place_own = ports_place(&scratch->answer, scratch->owner,
					 *last < FIRST_USER_PORT);
	scratch->place_all = ports_place(&scratch->answer, OWNER_ALL,
					 *last < FIRST_USER_PORT);
}

/* Whether scratch->owner may have one port more of @first to @last for
 * scratch->answer. */
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
	if (refusals)
		__sync_fetch_and_add(&refusals->ports, 1);
	return REASON_PORT_LIMIT;
}

#endif
