/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Stations that nobody told of: seen behind a trunk or a tunnel, by the source
 * of what they send. Known ones (`fdb`, `neighbors`) always go first, so that
 * nothing that is learned can take their place.
 */
#ifndef EBPNET_LEARN_H
#define EBPNET_LEARN_H

#include "address.h"
#include "config.h"
#include "index.h"
#include "maps.h"

/* `seen` is written no more often than this. */
#define LEARN_PRECISION SECONDS

/* How long an address is known without a packet from it to the gateway: as
 * long as a flow of it may be. */
static __always_inline __u64 learn_neighbor_timeout(void)
{
	__u64 most = learned_timeout;

	if (most < tcp_established_timeout)
		most = tcp_established_timeout;
	return most < udp_answered_timeout ? udp_answered_timeout : most;
}

/*
 * Copies the station of an entry of a hash that is less old than @timeout. The
 * kernel may use an entry for another key as soon as it is deleted, so whoever
 * calls has to look whether it is still the one that was sought.
 */
static __always_inline const struct station *
learn_copy(const struct learned *learned, __u64 timeout)
{
	struct scratch *scratch = scratch_get();

	if (!learned || !scratch ||
	    learned->seen + timeout <= bpf_ktime_get_coarse_ns())
		return NULL;
	scratch->learned = learned->station;
	barrier();
	return &scratch->learned;
}

/* The station with the MAC, if it is known. */
static __always_inline const struct station *
learn_find_told(__u32 network, const struct mac *mac)
{
	struct fdb_key key = { .network = network, .mac = *mac };

	return bpf_map_lookup_elem(&fdb, &key);
}

/* The station with the MAC, of those that `fdb` does not know. */
static __noinline const struct station *
learn_find(__u32 network, const struct mac *mac)
{
	struct fdb_key key = { .network = network, .mac = *mac };
	const struct station *station = learn_copy(
		bpf_map_lookup_elem(&learned_fdb, &key), learned_timeout);

	return station && station->network == network &&
			       mac_equal(&station->mac, mac) ?
		       station :
		       NULL;
}

/* The station that has the address. */
static __always_inline const struct station *
learn_find_neighbor(const struct address *address)
{
	const struct station *known = bpf_map_lookup_elem(&neighbors, address);

	if (known)
		return known;
	return learn_copy(bpf_map_lookup_elem(&learned_neigh, address),
			  learn_neighbor_timeout());
}

enum learn_what {
	LEARN_STATIONS,
	LEARN_NEIGHBORS,
};

/* The counts of the place where a station is, or of its whole network; they
 * are made if there are none. */
static __noinline struct learned_count *
learn_count(const struct station *station, bool whole)
{
	struct learned_place place = {
		.network = station->network,
		.endpoint = whole ? 0 : station->endpoint,
		.tunnel = whole ? 0 : station->tunnel,
	};
	struct learned_count *count =
		bpf_map_lookup_elem(&learned_counts, &place);
	struct learned_count none = {};

	if (count)
		return count;
	bpf_map_update_elem(&learned_counts, &place, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&learned_counts, &place);
}

static __always_inline __u32 *
learn_counted(struct learned_count *count, enum learn_what what)
{
	return what == LEARN_STATIONS ? &count->stations : &count->neighbors;
}

/* Writes where a station is into `learned_fdb` or `learned_neigh`. */
static __always_inline void
learn_write(void *map, const void *key, const struct station *station,
	    enum learn_what what)
{
	struct learned *old = bpf_map_lookup_elem(map, key);
	struct learned_count *network, *place;
	struct learned new = {
		.station = *station,
		.seen = bpf_ktime_get_coarse_ns(),
	};

	if (old && old->station.tunnel == station->tunnel &&
	    old->station.ifindex == station->ifindex &&
	    mac_equal(&old->station.mac, &station->mac)) {
		if (new.seen > old->seen + LEARN_PRECISION)
			old->seen = new.seen;
		return;
	}
	place = learn_count(station, false);
	network = learn_count(station, true);
	if (!place || !network)
		return;
	if (old) {
		/* It has moved. A value in place of the old one, so that
		 * nobody reads half of each. The old place's count is put
		 * right when it is counted again. */
		if (!(int)bpf_map_update_elem(map, key, &new, BPF_EXIST))
			__sync_fetch_and_add(learn_counted(place, what), 1);
		return;
	}
	if (*learn_counted(place, what) < LEARNED_A_PLACE &&
	    *learn_counted(network, what) < LEARNED_A_NETWORK &&
	    !(int)bpf_map_update_elem(map, key, &new, BPF_NOEXIST)) {
		__sync_fetch_and_add(learn_counted(place, what), 1);
		__sync_fetch_and_add(learn_counted(network, what), 1);
	}
}

/* Remembers where the station with station->mac is. */
static __noinline void learn_station(const struct station *station)
{
	struct fdb_key key = { .network = station->network,
			       .mac = station->mac };

	learn_write(&learned_fdb, &key, station, LEARN_STATIONS);
}

static __always_inline bool
learn_is_in_prefix(const struct address *address, const struct address *prefix,
		   __u32 length)
{
	for (int i = 0; i < 4; i++) {
		__u32 bits = length > 32 ? 32 : length;
		__u32 mask = bits ? 0xffffffffU << (32 - bits) : 0;

		if ((address->word[i] ^ prefix->word[i]) & bpf_htonl(mask))
			return false;
		length -= bits;
	}
	return true;
}

/* Whether the address is of one of the network's subnets. */
static __always_inline bool
learn_is_inside(const struct network *network, const struct address *address)
{
	bool ipv4 = address_is_ipv4(address);
	const struct address *gateway =
		ipv4 ? &network->gateway4 : &network->gateway6;

	return !address_is_zero(gateway) &&
	       learn_is_in_prefix(address, gateway,
				  ipv4 ? 96 + network->prefix4 :
					 network->prefix6);
}

/* Remembers that @address is that of a station, unless it is known. */
static __noinline void
learn_neighbor(const struct station *station, const struct address *address)
{
	struct address key = *address;

	if (!bpf_map_lookup_elem(&neighbors, &key))
		learn_write(&learned_neigh, &key, station, LEARN_NEIGHBORS);
}

/* The station that sends from behind a trunk. */
static __always_inline struct station
learn_sender(const struct device *device, __u32 ifindex,
	     const struct packet *pkt)
{
	return (struct station){
		.network = device->network,
		.endpoint = device->endpoint,
		.ifindex = ifindex,
		.kind = STATION_LOCAL,
		.mac = pkt->src_mac,
		.trunk = 1,
	};
}

/* Whether a learned station is one of those to forget. */
static __always_inline bool learn_is_meant(const struct learned *learned,
					   const struct learned_filter *filter)
{
	const struct station *station = &learned->station;

	return (!filter->network || filter->network == station->network) &&
	       (!filter->endpoint || filter->endpoint == station->endpoint) &&
	       (!filter->tunnel || filter->tunnel == station->tunnel) &&
	       (!filter->before || learned->seen < filter->before);
}

/* Counts an entry that stays. */
static __always_inline void
learn_keep(const struct learned *learned, enum learn_what what)
{
	struct station station = learned->station;

	for (int whole = 0; whole <= 1; whole++) {
		struct learned_count *count = learn_count(&station, whole);

		if (count)
			__sync_fetch_and_add(what == LEARN_STATIONS ?
						     &count->counted_stations :
						     &count->counted_neighbors,
					     1);
	}
}

static long
learn_sweep_station(void *map, struct fdb_key *key, struct learned *learned,
		    struct learned_filter *filter)
{
	if (learn_is_meant(learned, filter))
		bpf_map_delete_elem(&learned_fdb, key);
	else
		learn_keep(learned, LEARN_STATIONS);
	return 0;
}

static long
learn_sweep_neighbor(void *map, struct address *key, struct learned *learned,
		     struct learned_filter *filter)
{
	if (learn_is_meant(learned, filter))
		bpf_map_delete_elem(&learned_neigh, key);
	else
		learn_keep(learned, LEARN_NEIGHBORS);
	return 0;
}

static long learn_settle(void *map, struct learned_place *place,
			 struct learned_count *count, void *context)
{
	count->stations = count->counted_stations;
	count->neighbors = count->counted_neighbors;
	count->counted_stations = count->counted_neighbors = 0;
	return 0;
}

/* Forgets the learned stations and neighbors that are meant, and counts the
 * others. */
static __always_inline void
learn_forget(struct learned_filter *stations, struct learned_filter *neighbors)
{
	bpf_for_each_map_elem(&learned_fdb, learn_sweep_station, stations, 0);
	bpf_for_each_map_elem(&learned_neigh, learn_sweep_neighbor, neighbors,
			      0);
	bpf_for_each_map_elem(&learned_counts, learn_settle, NULL, 0);
}

/* Forgets those that have not been seen for too long. Times are since boot: one
 * before is as good as the first moment after. */
static __always_inline void learn_age(void)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct learned_filter stations = { .before = 1 };
	struct learned_filter neighbors = { .before = 1 };

	if (now > learned_timeout)
		stations.before = now - learned_timeout;
	if (now > learn_neighbor_timeout())
		neighbors.before = now - learn_neighbor_timeout();
	learn_forget(&stations, &neighbors);
}

#endif
