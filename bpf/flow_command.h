/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changes to flows that the loader and the agent ask for: ending and restoring
 * them. */
#ifndef EBPNET_FLOW_COMMAND_H
#define EBPNET_FLOW_COMMAND_H

#include "masquerade.h"
#include "neighbor.h"
#include "packet.h"
#include "publish.h"

/* Whether the sender of packets with @key exists. The host and the outside
 * always do. */
static __always_inline bool
flow_command_has_sender(struct scratch *scratch, const struct flow_key *key)
{
	const struct station *station;

	if (key->network == NETWORK_OUTSIDE || key->network == NETWORK_LOOPBACK)
		return true;
	station = bpf_map_lookup_elem(&neighbors, &key->src);
	if (!station)
		station = neighbor_lookup_learned(scratch, &key->src);
	return station && station->network == key->network;
}

/* Whether the published port of the flow still exists. */
static __always_inline bool flow_command_has_port(const struct flow *flow)
{
	const struct flow_key *reply = &flow->reply;
	const struct port *port;

	/* It has no published port. */
	if (reply->network == NETWORK_OUTSIDE || flow->mapping != NO_MAPPING ||
	    !packet_has_ports(reply->protocol) ||
	    (flow->original.network == reply->network &&
	     address_equal(&flow->original.dst, &reply->src)))
		return true;
	port = publish_lookup(&flow->original);
	return port && port->network == reply->network &&
	       port->port == reply->sport &&
	       address_equal(&port->address, &reply->src) &&
	       (flow->original.network == NETWORK_LOOPBACK ||
		publish_allows(port, &flow->original.src));
}

static __always_inline bool
flow_command_is_of(const struct flow_key *key, const struct flow_filter *filter)
{
	return key->network == filter->network &&
	       (address_equal(&key->src, &filter->ipv4) ||
		address_equal(&key->src, &filter->ipv6) ||
		address_equal(&key->dst, &filter->ipv4) ||
		address_equal(&key->dst, &filter->ipv6));
}

/* Ends the flow in @slot if scratch->filter matches it. */
static __noinline void
flow_command_end(struct scratch *scratch, struct flow *flow, __u32 slot)
{
	const struct flow_filter *filter = &scratch->filter;
	__u32 state = flow->state;

	if (!flow_can_end(state))
		return;
	switch (filter->choice) {
	case FLOWS_OF_ADDRESSES:
		if (!flow_command_is_of(&flow->original, filter) &&
		    !flow_command_is_of(&flow->reply, filter))
			return;
		break;
	case FLOWS_UNBACKED:
		if (!flow_command_has_sender(scratch, &flow->original) ||
		    !flow_command_has_sender(scratch, &flow->reply))
			break;
		if (!flow_command_has_port(flow) && state != FLOW_REVOKED)
			flow_revoke(flow, slot, state);
		return;
	default:
		break;
	}
	flow_end(flow, slot, state);
}

static int flow_command_end_slot(__u32 i, void *context)
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
	flow_command_end(scratch, flow, slot);
	return 0;
}

/* Ends the next flow in the list of scratch->filter.endpoint, if the filter
 * matches. A flow that has just left the list still links to the next one. If
 * its slot has been reused meanwhile, the list is read again from its start. */
static int flow_command_end_listed(__u32 i, void *context)
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
	flow_command_end(scratch, flow, slot);
	return 0;
}

/* Finds the mapping that the flow had in the old tables, or makes it again in
 * @slot. False if another flow has its port now. */
static __always_inline bool
flow_command_restore_mapping(const struct flow *old, __u32 slot, __u32 *mapping)
{
	const struct flow *holder;
	struct flow_key key;
	__be16 port;

	mapping_inside(&key, &old->original, &old->reply);
	*mapping = mapping_acquire(&key);
	mapping_outside(&key, &old->original, &old->reply);
	if (*mapping == NO_MAPPING) {
		*mapping = slot;
		return !flow_index_add(&key, slot, FLOW_MAPPING);
	}
	port = key.dport;
	holder = flow_at(*mapping);
	if (holder) {
		mapping_outside(&key, &holder->original, &holder->reply);
		if (key.dport == port)
			return true;
	}
	mapping_release(*mapping);
	return false;
}

/* The endpoint that sends with @key; 0 if it is not known. */
static __always_inline __u32 flow_command_sender(struct scratch *scratch,
						 const struct flow_key *key)
{
	const struct station *station;

	if (key->network == NETWORK_OUTSIDE || key->network == NETWORK_LOOPBACK)
		return 0;
	station = bpf_map_lookup_elem(&neighbors, &key->src);
	if (!station)
		station = neighbor_lookup_learned(scratch, &key->src);
	if (!station || station->network != key->network)
		return 0;
	return station->endpoint;
}

/* Finds the owner and the server of a flow of a version that did not note
 * them, as if the flow was opened now. */
static __noinline void
flow_command_find_owner(struct scratch *scratch, const struct flow *old)
{
	const struct flow_key *original = &old->original, *reply = &old->reply;
	const struct port *port;

	scratch->owner = flow_command_sender(scratch, original);
	scratch->server = flow_command_sender(scratch, reply);
	if (original->network != NETWORK_OUTSIDE ||
	    reply->network == NETWORK_OUTSIDE)
		return;
	if (old->mapping != NO_MAPPING) {
		scratch->owner = scratch->server;
		scratch->server = 0;
		return;
	}
	port = publish_lookup(original);
	if (port)
		scratch->owner = OWNER_PORTS + port->id;
}

/* Establishes the flow in @slot of the new tables if @old, the same flow in the
 * old tables, is established. The flow takes the phase of @old, unless it has
 * begun to close. */
static __always_inline void
flow_command_update(const struct flow *old, __u32 slot)
{
	struct flow *flow = flow_at(slot);
	enum flow_phase phase;

	if (!flow || old->state != FLOW_ESTABLISHED ||
	    flow->state != FLOW_HALF_OPEN)
		return;
	phase = flow->phase;
	if (phase == PHASE_NEW || phase == PHASE_REPLIED)
		__sync_val_compare_and_swap(&flow->phase, phase, old->phase);
	flow_establish(flow, slot, true);
}

/* Opens a flow of the old tables in the new ones. Only updates the flow if it
 * is there already. */
static __always_inline int
flow_command_restore(struct scratch *scratch, const struct flow *old)
{
	bool inside = flow_is_inside(&old->original, &old->reply);
	enum flow_side side =
		inside ? flow_first_side(&old->original) : FLOW_ORIGINAL;
	__u32 slot, mapping = NO_MAPPING;
	__u32 first = first_port, last = last_port;
	const struct flow_ref *ref;
	enum reason reason;
	struct flow *flow;
	int err = 0;

	ref = bpf_map_lookup_elem(&flow_index, side == FLOW_ORIGINAL ?
						       &old->original :
						       &old->reply);
	if (ref) {
		if (ref->side != FLOW_MAPPING)
			flow_command_update(old, ref->slot);
		return REASON_NONE;
	}
	/* An established flow continues, also if its owner is now over its
	 * share. */
	if (!flow_slot_find(scratch, &slot))
		return REASON_FLOW_TABLE_FULL;
	flow = flow_at(slot);
	if (!flow)
		return REASON_KERNEL_ERROR;
	if (!inside)
		err = flow_index_add(&old->reply, slot, FLOW_REPLY);
	if (err) {
		flow_slot_release(slot);
		return err == -EEXIST ? REASON_PORTS_EXHAUSTED :
					flow_index_reason(err);
	}
	if (old->mapping != NO_MAPPING &&
	    !flow_command_restore_mapping(old, slot, &mapping)) {
		flow_index_remove(&old->reply, slot);
		flow_slot_release(slot);
		return REASON_PORTS_EXHAUSTED;
	}
	scratch->original = old->original;
	scratch->reply = old->reply;
	scratch->owner = old->owner;
	scratch->server = old->server;
	scratch->place_own = scratch->place_all = 0;
	if (old->reply.network != NETWORK_OUTSIDE) { /* of a gateway */
		first = FIRST_USER_PORT;
		last = LAST_PORT;
	}
	if (old->owner == OWNER_UNKNOWN)
		flow_command_find_owner(scratch, old);
	if (old->place_own ||
	    (old->owner == OWNER_UNKNOWN &&
	     !address_equal(&old->reply.dst, &old->original.src)))
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
	flow->phase = old->phase;
	flow->uplink = old->uplink;
	flow->sequence = old->sequence;
	if (old->state == FLOW_ESTABLISHED)
		flow_establish(flow, slot, true);
	/* Last: if the flow has just ended, this ends its slot's grace period. */
	flow->seen = old->seen;
	return REASON_NONE;
}

#endif
