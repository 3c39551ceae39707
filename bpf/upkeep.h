/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changes to flows that the loader and the agent ask for: ending and restoring
 * them. */
#ifndef EBPNET_UPKEEP_H
#define EBPNET_UPKEEP_H

#include "learn.h"
#include "masquerade.h"
#include "publish.h"

/* Whether the endpoint that sends with @key is there. The host and the outside
 * always are. */
static __always_inline bool
upkeep_has_sender(struct scratch *scratch, const struct flow_key *key)
{
	const struct station *station;

	if (key->network == NETWORK_OUTSIDE || key->network == NETWORK_LOOPBACK)
		return true;
	station = bpf_map_lookup_elem(&neighbors, &key->src);
	if (!station)
		station = learn_copy_neighbor(scratch, &key->src);
	return station && station->network == key->network;
}

/* Whether the published port is there by which the flow came to its endpoint.
 */
static __always_inline bool upkeep_has_port(const struct flow *flow)
{
	const struct flow_key *answer = &flow->answer;
	const struct port *port;

	/* It came by no published port. */
	if (answer->network == NETWORK_OUTSIDE || flow->mapping != NO_MAPPING ||
	    !protocol_has_ports(answer->protocol) ||
	    (flow->opener.network == answer->network &&
	     address_equal(&flow->opener.dst, &answer->src)))
		return true;
	port = publish_lookup(&flow->opener);
	return port && port->network == answer->network &&
	       port->port == answer->sport &&
	       address_equal(&port->address, &answer->src) &&
	       (flow->opener.network == NETWORK_LOOPBACK ||
		publish_allows(port, &flow->opener.src));
}

static __always_inline bool
upkeep_is_of(const struct flow_key *key, const struct flow_filter *filter)
{
	return key->network == filter->network &&
	       (address_equal(&key->src, &filter->ipv4) ||
		address_equal(&key->src, &filter->ipv6) ||
		address_equal(&key->dst, &filter->ipv4) ||
		address_equal(&key->dst, &filter->ipv6));
}

/* Ends the flow in @slot if scratch->filter matches it. */
static __noinline void
upkeep_end(struct scratch *scratch, struct flow *flow, __u32 slot)
{
	const struct flow_filter *filter = &scratch->filter;
	__u32 state = flow->state;

	if (!flow_can_end(state))
		return;
	switch (filter->choice) {
	case FLOWS_OF_ADDRESSES:
		if (!upkeep_is_of(&flow->opener, filter) &&
		    !upkeep_is_of(&flow->answer, filter))
			return;
		break;
	case FLOWS_UNBACKED:
		if (!upkeep_has_sender(scratch, &flow->opener) ||
		    !upkeep_has_sender(scratch, &flow->answer))
			break;
		if (!upkeep_has_port(flow) && state != FLOW_REVOKED)
			flow_revoke(flow, slot, state);
		return;
	default:
		break;
	}
	flow_end(flow, slot, state);
}

static int upkeep_end_slot(__u32 i, void *context)
{
	struct scratch *scratch = scratch_of_command();
	struct flow *flow;
	__u32 slot;

	if (!scratch)
		return 1;
	slot = scratch->filter.first + i;
	flow = flow_at(slot);
	if (!flow)
		return 1;
	upkeep_end(scratch, flow, slot);
	return 0;
}

/* The same for the next flow in the list of scratch->filter.endpoint. A flow
 * that has just left the list still links to the next one. If its slot has been
 * reused meanwhile, the list is read again from its start. */
static int upkeep_end_listed(__u32 i, void *context)
{
	struct scratch *scratch = scratch_of_command();
	struct flow_filter *filter;
	__u32 place, slot, after;
	enum flow_side side;
	struct flow *flow;

	if (!scratch)
		return 1;
	filter = &scratch->filter;
	place = filter->first;
	if (!place)
		return 1;
	slot = flow_list_slot(place);
	side = flow_list_side(place);
	flow = flow_at(slot);
	if (!flow)
		return 1;
	after = flow->links[side].after;
	barrier();
	if (flow_list_endpoint(flow, side) != filter->endpoint) {
		filter->first = flow_list_first(filter->endpoint);
		return 0;
	}
	filter->first = after;
	upkeep_end(scratch, flow, slot);
	return 0;
}

/* Finds the mapping that the flow had in the old tables, or makes it again in
 * @slot. False if another flow has its port now. */
static __always_inline bool
upkeep_restore_mapping(const struct flow *old, __u32 slot, __u32 *mapping)
{
	const struct flow *holder;
	struct flow_key key;
	__be16 port;

	mapping_inside(&key, &old->opener, &old->answer);
	*mapping = mapping_join(&key);
	mapping_outside(&key, &old->opener, &old->answer);
	if (*mapping == NO_MAPPING) {
		*mapping = slot;
		return !flow_index_add(&key, slot, FLOW_MAPPING);
	}
	port = key.dport;
	holder = flow_at(*mapping);
	if (holder) {
		mapping_outside(&key, &holder->opener, &holder->answer);
		if (key.dport == port)
			return true;
	}
	mapping_leave(*mapping);
	return false;
}

/* The endpoint that sends with @key; 0 if it is not known. */
static __always_inline __u32 upkeep_sender(struct scratch *scratch,
					   const struct flow_key *key)
{
	const struct station *station;

	if (key->network == NETWORK_OUTSIDE || key->network == NETWORK_LOOPBACK)
		return 0;
	station = bpf_map_lookup_elem(&neighbors, &key->src);
	if (!station)
		station = learn_copy_neighbor(scratch, &key->src);
	if (!station || station->network != key->network)
		return 0;
	return station->endpoint;
}

/* Finds the owner and the server of a flow of a version that did not note
 * them, as if the flow was opened now. */
static __noinline void
upkeep_find_owner(struct scratch *scratch, const struct flow *old)
{
	const struct flow_key *opener = &old->opener, *answer = &old->answer;
	const struct port *port;

	scratch->owner = upkeep_sender(scratch, opener);
	scratch->server = upkeep_sender(scratch, answer);
	if (opener->network != NETWORK_OUTSIDE ||
	    answer->network == NETWORK_OUTSIDE)
		return;
	if (old->mapping != NO_MAPPING) {
		scratch->owner = scratch->server;
		scratch->server = 0;
		return;
	}
	port = publish_lookup(opener);
	if (port)
		scratch->owner = OWNER_PORTS + port->id;
}

/* The flow in @slot is in the new tables already. In the old ones it may have
 * been established since. */
static __always_inline void upkeep_update(const struct flow *old, __u32 slot)
{
	struct flow *flow = flow_at(slot);

	if (!flow || old->state != FLOW_ANSWERED ||
	    flow->state != FLOW_HALF_OPEN)
		return;
	__sync_fetch_and_or(&flow->flags, old->flags);
	flow_settle(flow, slot, true);
}

/* Opens a flow of the old tables in the new ones. Only updates the flow if it
 * is there already. */
static __always_inline int
upkeep_restore(struct scratch *scratch, const struct flow *old)
{
	bool inside = flow_is_inside(&old->opener, &old->answer);
	enum flow_side side =
		inside ? flow_first_side(&old->opener) : FLOW_OPENER;
	__u32 slot, mapping = NO_MAPPING;
	__u32 first = first_port, last = last_port;
	const struct flow_ref *ref;
	enum reason reason;
	struct flow *flow;
	int err = 0;

	ref = bpf_map_lookup_elem(
		&flow_index, side == FLOW_OPENER ? &old->opener : &old->answer);
	if (ref) {
		if (ref->side != FLOW_MAPPING)
			upkeep_update(old, ref->slot);
		return REASON_NONE;
	}
	/* An established flow goes on, whatever its owner's share is now. */
	if (!flow_find_slot(scratch, &slot))
		return REASON_FLOW_TABLE_FULL;
	flow = flow_at(slot);
	if (!flow)
		return REASON_KERNEL_ERROR;
	if (!inside)
		err = flow_index_add(&old->answer, slot, FLOW_ANSWER);
	if (err) {
		flow_release_slot(slot);
		return err == -EEXIST ? REASON_PORTS_EXHAUSTED :
					flow_index_reason(err);
	}
	if (old->mapping != NO_MAPPING &&
	    !upkeep_restore_mapping(old, slot, &mapping)) {
		flow_index_remove(&old->answer, slot);
		flow_release_slot(slot);
		return REASON_PORTS_EXHAUSTED;
	}
	scratch->opener = old->opener;
	scratch->answer = old->answer;
	scratch->owner = old->owner;
	scratch->server = old->server;
	scratch->place_own = scratch->place_all = 0;
	if (old->answer.network != NETWORK_OUTSIDE) { /* of a gateway */
		first = FIRST_USER_PORT;
		last = LAST_PORT;
	}
	if (old->owner == OWNER_UNKNOWN)
		upkeep_find_owner(scratch, old);
	if (old->place_own ||
	    (old->owner == OWNER_UNKNOWN &&
	     !address_equal(&old->answer.dst, &old->opener.src)))
		ports_note(scratch, &first, &last);
	if (mapping == slot)
		mapping_publish(scratch, slot);
	reason = flow_open(scratch, slot, mapping, side);
	if (reason)
		return reason;
	/* A packet has opened the same flow first, or the flow has ended. */
	if (!flow_is_open(flow))
		return REASON_NONE;
	flow->opened = old->opened;
	flow->sent[0] = old->sent[0];
	flow->sent[1] = old->sent[1];
	flow->flags = old->flags;
	flow->uplink = old->uplink;
	flow->sequence = old->sequence;
	if (old->state == FLOW_ANSWERED)
		flow_settle(flow, slot, true);
	/* Last: if the flow has just ended, this ends its slot's grace period. */
	flow->seen = old->seen;
	return REASON_NONE;
}

#endif
