/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Lookups of stations by IP address: static entries (`neighbors`), which the
 * agent writes, and learned ones (`learned_neigh`).
 */
#ifndef EBPNET_NEIGHBOR_H
#define EBPNET_NEIGHBOR_H

#include "fdb.h"

/* How long a learned address stays without a packet from it to the gateway: as
 * long as its flows may live. */
static __always_inline __u64 neighbor_learned_timeout(void)
{
	__u64 most = learned_timeout;

	if (most < tcp_established_timeout)
		most = tcp_established_timeout;
	return most < udp_established_timeout ? udp_established_timeout : most;
}

/* The learned station that has the address. The address of the entry is
 * compared after the copy: see fdb_copy_learned(). */
static __always_inline const struct station *
neighbor_lookup_learned(struct scratch *scratch, const struct address *address)
{
	const struct learned *learned =
		bpf_map_lookup_elem(&learned_neigh, address);
	const struct station *station =
		fdb_copy_learned(scratch, learned, neighbor_learned_timeout());

	return station && address_equal(&learned->address, address) ? station :
								      NULL;
}

/* The station that has the address, static or learned. */
static __always_inline const struct station *
neighbor_lookup(const struct address *address)
{
	const struct station *known = bpf_map_lookup_elem(&neighbors, address);

	return known ? known : neighbor_lookup_learned(scratch_get(), address);
}

#endif
