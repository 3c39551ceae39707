/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Learned stations: seen behind a trunk or a tunnel as the source of a frame.
 * Static entries (`fdb`, `neighbors`) always win, so a learned entry cannot
 * take their place.
 */
#ifndef EBPNET_LEARN_H
#define EBPNET_LEARN_H

#include "address.h"
#include "config.h"
#include "learn_count.h"
#include "neighbor.h"

/* `seen` is written no more often than this. */
#define LEARN_PRECISION SECONDS

/*
 * An entry has a record in `learned_queue`, by which the sweep finds it. Both
 * hold the same number, so a record does not match a later entry with the same
 * key. Only the CPU that has claimed an entry may move or remove it, so its
 * place is counted once. The upper bits of an entry's number change when it
 * moves, because the kernel may reuse its memory.
 */
#define LEARN_CLAIMED  0xffffffff
#define LEARN_NUMBER   0x00ffffff
#define LEARN_MOVED    0x01000000
#define LEARN_NUMBERED 1 /* never 0, which entries of older versions have */

static __always_inline __u32 learn_new_number(void)
{
	return (bpf_get_prandom_u32() & LEARN_NUMBER >> 1) | LEARN_NUMBERED;
}

/* Claims an entry for this CPU. @number: the entry's, as read before its place
 * was read. */
static __always_inline bool learn_claim(struct learned *learned, __u32 number)
{
	return number != LEARN_CLAIMED &&
	       __sync_val_compare_and_swap(&learned->number, number,
					   LEARN_CLAIMED) == number;
}

static __always_inline __u32 learn_number(const struct learned *learned)
{
	__u32 number = *(const volatile __u32 *)&learned->number;

	barrier();
	return number;
}

/* Removes an entry, or replaces it by @new at another place. The new value
 * replaces the old one at once, so no CPU reads half of each. False if another
 * CPU changes the entry at the same time. */
static __always_inline bool
learn_replace(void *map, const void *key, struct learned *old,
	      struct learned *new, enum learn_what what)
{
	__u32 number = learn_number(old);
	__u32 network = old->station.network;
	__u32 endpoint = old->station.endpoint;
	__u32 tunnel = old->station.tunnel;
	int err;

	if (!learn_claim(old, number))
		return false;
	if (new) {
		new->number = number ? number + LEARN_MOVED : 0;
		/* Counted first: another CPU may move the entry on at once. */
		learn_count_station(&new->station, what, true);
		err = bpf_map_update_elem(map, key, new, BPF_EXIST);
		if (err)
			learn_count_station(&new->station, what, false);
	} else {
		err = bpf_map_delete_elem(map, key);
	}
	if (err) {
		old->number = number;
		return false;
	}
	learn_count_entry(network, endpoint, tunnel, what, false);
	return true;
}

static __always_inline bool
learn_remove(void *map, const void *key, struct learned *learned,
	     enum learn_what what)
{
	return learn_replace(map, key, learned, NULL, what);
}

/* Puts the record of an entry into the queue; false if the queue is full. */
static __always_inline bool
learn_enqueue(const void *key, __u32 size, __u32 number, enum learn_what what)
{
	struct learned_record record = { .number = number, .what = what };

	__builtin_memcpy(record.key, key, size);
	return !(int)bpf_map_push_elem(&learned_queue, &record, BPF_ANY);
}

/* Whether the place and its network may have one entry more. */
static __always_inline bool
learn_has_room(const struct station *station, enum learn_what what)
{
	struct learned_count *place = learn_count(
		station->network, station->endpoint, station->tunnel);
	struct learned_count *network = learn_count(station->network, 0, 0);

	return place && network &&
	       *learn_count_of(place, what) < LEARNED_PER_PLACE &&
	       *learn_count_of(network, what) < LEARNED_PER_NETWORK;
}

/* Writes the place of a station into `learned_fdb` or `learned_neigh`. */
static __always_inline void
learn_write(void *map, const void *key, __u32 size,
	    const struct station *station, enum learn_what what)
{
	struct learned *old = bpf_map_lookup_elem(map, key);
	struct learned new = {
		.station = *station,
		.seen = bpf_ktime_get_coarse_ns(),
	};

	if (dry_run)
		return;
	if (what == LEARN_NEIGHBORS)
		__builtin_memcpy(&new.address, key, size);
	if (old && old->station.tunnel == station->tunnel &&
	    old->station.ifindex == station->ifindex &&
	    mac_equal(&old->station.mac, &station->mac)) {
		if (new.seen > old->seen + LEARN_PRECISION)
			old->seen = new.seen;
		return;
	}
	if (old) {
		learn_replace(map, key, old, &new, what);
		return;
	}
	if (!learn_has_room(station, what))
		return;
	new.number = learn_new_number();
	/* Counted first: another CPU may remove the entry at once. */
	learn_count_station(station, what, true);
	if ((int)bpf_map_update_elem(map, key, &new, BPF_NOEXIST)) {
		learn_count_station(station, what, false);
		return;
	}
	if (learn_enqueue(key, size, new.number, what))
		return;
	old = bpf_map_lookup_elem(map, key);
	if (old)
		learn_remove(map, key, old, what);
}

/* Learns the place of the station with station->mac. */
static __noinline void learn_station(const struct station *station)
{
	struct fdb_key key = { .network = station->network,
			       .mac = station->mac };

	learn_write(&learned_fdb, &key, sizeof(key), station, LEARN_STATIONS);
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

/* Learns that the station has @address, unless a static entry has it. */
static __noinline void
learn_neighbor(const struct station *station, const struct address *address)
{
	struct address key = *address;

	if (!bpf_map_lookup_elem(&neighbors, &key))
		learn_write(&learned_neigh, &key, sizeof(key), station,
			    LEARN_NEIGHBORS);
}

/* Builds the station that sends from behind a trunk. */
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

/* Whether the filter matches a learned station. */
static __always_inline bool learn_is_meant(const struct learned *learned,
					   const struct learned_filter *filter)
{
	const struct station *station = &learned->station;

	return (!filter->network || filter->network == station->network) &&
	       (!filter->endpoint || filter->endpoint == station->endpoint) &&
	       (!filter->tunnel || filter->tunnel == station->tunnel) &&
	       (!filter->before || learned->seen < filter->before);
}

static long
learn_forget_station(void *map, struct fdb_key *key, struct learned *learned,
		     const struct learned_filter *filter)
{
	if (learn_is_meant(learned, filter))
		learn_remove(&learned_fdb, key, learned, LEARN_STATIONS);
	return 0;
}

static long
learn_forget_neighbor(void *map, struct address *key, struct learned *learned,
		      const struct learned_filter *filter)
{
	if (learn_is_meant(learned, filter))
		learn_remove(&learned_neigh, key, learned, LEARN_NEIGHBORS);
	return 0;
}

/* Removes the learned stations and neighbors that the filter matches. */
static __always_inline void learn_forget(struct learned_filter *filter)
{
	bpf_for_each_map_elem(&learned_fdb, learn_forget_station, filter, 0);
	bpf_for_each_map_elem(&learned_neigh, learn_forget_neighbor, filter, 0);
}

#endif
