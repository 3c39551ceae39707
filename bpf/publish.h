/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that others open to an endpoint: to a published port, or to a mapped
 * port of a network with endpoint-independent filtering.
 */
#ifndef EBPNET_PUBLISH_H
#define EBPNET_PUBLISH_H

#include "decision.h"
#include "route.h"
#include "search.h"

/* Whether a packet opens a flow to an endpoint. */
enum publish_result {
	PUBLISH_NOT_OURS, /* it is for no endpoint */
	PUBLISH_OPENED,
	PUBLISH_REFUSED, /* for decision.reason */
};

static __always_inline enum publish_result
publish_result(struct scratch *scratch, enum reason reason)
{
	scratch->decision.reason = reason;
	return reason ? PUBLISH_REFUSED : PUBLISH_OPENED;
}

/* The action for a packet that is for an endpoint. */
static __always_inline enum action publish_action(enum publish_result result)
{
	return result == PUBLISH_OPENED ? ACTION_UNDECIDED : ACTION_DROP;
}

/* The port that is published at the destination of @key, or at every address
 * of its family. */
static __noinline const struct port *publish_lookup(const struct flow_key *key)
{
	struct port_key at = {
		.address = key->dst,
		.port = key->dport,
		.protocol = key->protocol,
	};
	const struct port *port = bpf_map_lookup_elem(&ports, &at);

	if (port)
		return port;
	at.address.word[3] = 0;
	if (!address_is_ipv4(&key->dst))
		__builtin_memset(&at.address, 0, sizeof(at.address));
	return bpf_map_lookup_elem(&ports, &at);
}

/* Whether a packet that comes in by an uplink for @dst may be for a published
 * port: @dst must be an address of the host, and no gateway. A loopback address
 * passes here: publish_check() drops it with its own reason. */
static __noinline bool
publish_is_reachable(ctx_t *ctx, const struct address *dst)
{
	if (address_is_loopback(dst))
		return true;
	return !route_is_unroutable(dst) &&
	       !bpf_map_lookup_elem(&neighbors, dst) &&
	       route_is_local(ctx, dst);
}

/* Whether @dst is a broadcast or anycast address: the route leads to the host,
 * but the host must not send from it, so no flow may be opened to it. */
static __always_inline bool publish_is_broadcast(const struct address *dst)
{
	return bpf_map_lookup_elem(&broadcasts, dst);
}

/* The published port that packets with @key are for. A connection of the host
 * itself with the same key wins. */
static __always_inline const struct port *
publish_find(ctx_t *ctx, const struct flow_key *key)
{
	const struct port *port = publish_lookup(key);

	if (!port ||
	    (key->network == NETWORK_OUTSIDE && !(port->flags & PORT_ROUTED) &&
	     !publish_is_reachable(ctx, &key->dst)) ||
	    publish_is_broadcast(&key->dst) ||
	    search_socket(ctx, key) == SOCKET_CONNECTED)
		return NULL;
	return port;
}

/* Whether the source of a packet from outside is impossible: the host, a
 * container, or no unicast address. A packet that an endpoint sends to another
 * one by hairpin comes from the host's address, and passes. */
static __noinline bool publish_is_spoofed(ctx_t *ctx, const struct address *src)
{
	struct scratch *scratch = scratch_get();
	__u32 ifindex = ctx_ifindex(ctx);
	enum reason reason;

	if (!scratch || bpf_map_lookup_elem(&devices, &ifindex))
		return false;
	if (route_is_unroutable(src))
		return true;
	reason = route_find(ctx, src, src, 0, &scratch->route);
	return reason == REASON_ISOLATED ||
	       (!reason && !scratch->route.ifindex);
}

/* The entry of `port_sources` for @source under @id. */
static __noinline const __u32 *
publish_source(__u32 id, const struct address *source)
{
	struct port_source_key key = {
		.length = 8 * (sizeof(key.id) + sizeof(key.prefix)),
		.id = id,
		.prefix = *source,
	};

	return bpf_map_lookup_elem(&port_sources, &key);
}

static __always_inline bool
publish_allows(const struct port *port, const struct address *source)
{
	return !(port->flags & PORT_RESTRICTED) ||
	       publish_source(port->id, source);
}

/*
 * Whether the endpoint of @port must see the gateway's address in place of the
 * client's, because its answers to the client would not pass the gateway. That
 * is so if the client is on the same network, if its address is a loopback or
 * link-local one, or if the endpoint's namespace reaches it by another
 * interface.
 */
static __always_inline bool
publish_needs_gateway(const struct port *port, const struct flow_key *key)
{
	const __u32 *elsewhere = NULL;

	if (key->network == port->network || address_is_loopback(&key->src) ||
	    (!address_is_ipv4(&key->src) && address_is_link_local(&key->src)))
		return true;
	if (port->flags & PORT_ROUTES)
		elsewhere =
			publish_source(port->id | PORT_ROUTES_ID, &key->src);
	return elsewhere && *elsewhere;
}

/* Whether packets with @key may open a flow to the published @port of
 * @network. */
static __always_inline enum reason
publish_check(ctx_t *ctx, const struct flow_key *key, const struct port *port,
	      const struct network *network)
{
	if (network->flags & NETWORK_INTERNAL)
		return REASON_INTERNAL;
	if (key->network == NETWORK_OUTSIDE && address_is_loopback(&key->dst))
		return REASON_LOOPBACK_ONLY;
	if (key->network == NETWORK_OUTSIDE &&
	    publish_is_spoofed(ctx, &key->src))
		return REASON_SPOOFED_ADDRESS;
	/* The host itself may always reach its containers. */
	if (key->network != NETWORK_LOOPBACK &&
	    !publish_allows(port, &key->src))
		return REASON_SOURCE_NOT_ALLOWED;
	return REASON_NONE;
}

/* Opens the flow of packets with scratch->key to the published @port. */
__verified_once int publish_open_port(ctx_t *ctx, const struct port *port)
{
	struct search search = { .ctx = ctx, .kind = SEARCH_PEER };
	struct scratch *scratch = scratch_get();
	const struct network *network;
	const struct flow_key *key;
	enum reason reason;
	__u32 id;

	if (!port || !scratch)
		return PUBLISH_REFUSED;
	key = &scratch->key;
	id = port->network;
	network = bpf_map_lookup_elem(&networks, &id);
	if (!network)
		return publish_result(scratch, REASON_KERNEL_ERROR);
	reason = publish_check(ctx, key, port, network);
	if (reason)
		return publish_result(scratch, reason);
	/* A flow that an endpoint opens counts for the endpoint: see
	 * gateway_open(). */
	if (key->network == NETWORK_OUTSIDE)
		scratch->owner = OWNER_PORTS + port->id;
	else if (key->network == NETWORK_LOOPBACK)
		scratch->owner = OWNER_HOST;
	scratch->server = port->endpoint;
	scratch->original = *key;
	flow_key_reverse(&scratch->reply, key, port->network);
	scratch->reply.src = port->address;
	scratch->reply.sport = port->port;
	if (publish_needs_gateway(port, key)) {
		search.kind = SEARCH_GATEWAY;
		scratch->reply.dst = address_is_ipv4(&key->dst) ?
					     network->gateway4 :
					     network->gateway6;
	}
	return publish_result(scratch,
			      search_open(&search, scratch, NO_MAPPING));
}

/* Opens the flow of packets with scratch->key from outside to a mapped port, if
 * the packet may open one and the port's network has endpoint-independent
 * filtering. */
__verified_once int publish_open_mapping(ctx_t *ctx, bool may_open)
{
	struct search search = { .ctx = ctx, .kind = SEARCH_PEER };
	struct scratch *scratch = scratch_get();
	enum publish_result result;
	const struct network *network;
	const struct flow_key *key;
	const struct flow *holder;
	__u32 slot, id;

	if (!scratch)
		return PUBLISH_NOT_OURS;
	key = &scratch->key;
	mapping_key(&scratch->mapping, key);
	slot = mapping_acquire(&scratch->mapping);
	if (slot == NO_MAPPING)
		return PUBLISH_NOT_OURS;
	/* The host may use or listen on a port that was free when it was
	 * mapped. */
	result = PUBLISH_NOT_OURS;
	holder = flow_at(slot);
	if (!holder || search_socket(ctx, key) != SOCKET_NONE)
		goto refuse;
	result = publish_result(scratch, REASON_UNSOLICITED);
	scratch->owner = holder->owner;
	scratch->server = 0;
	scratch->original = *key;
	mapping_inside(&scratch->reply, &holder->original, &holder->reply);
	scratch->reply.dst = key->src;
	id = scratch->reply.network;
	network = bpf_map_lookup_elem(&networks, &id);
	if (!may_open || !network || !(network->flags & NETWORK_OPEN) ||
	    publish_is_spoofed(ctx, &key->src))
		goto refuse;
	return publish_result(scratch, search_open(&search, scratch, slot));
refuse:
	mapping_release(slot);
	return result;
}

/* Opens the flow of an echo request to an endpoint's own address, if its
 * network is a routed one. */
static __always_inline enum publish_result
publish_open_echo(ctx_t *ctx, struct scratch *scratch)
{
	const struct flow_key *key = &scratch->key;
	const struct station *station =
		bpf_map_lookup_elem(&neighbors, &key->dst);
	const struct network *network;

	/* With identifier 0 its key would be that of a reply. */
	if (!key->sport || !station || station->kind != STATION_LOCAL)
		return PUBLISH_NOT_OURS;
	network = bpf_map_lookup_elem(&networks, &station->network);
	if (!network || !(network->flags & NETWORK_ROUTED))
		return PUBLISH_NOT_OURS;
	scratch->echo.id = OWNER_PINGS - OWNER_PORTS;
	scratch->echo.address = key->dst;
	scratch->echo.network = station->network;
	scratch->echo.endpoint = station->endpoint;
	return publish_open_port(ctx, &scratch->echo);
}

/* Opens the flow of packets with scratch->key from another network to an
 * endpoint's own address. */
static __always_inline enum publish_result
publish_open_routed(ctx_t *ctx, struct scratch *scratch)
{
	const struct packet *pkt = &scratch->packet;
	const struct flow_key *key = &scratch->key;
	const struct port *port;

	if (pkt->echo == ECHO_REQUEST)
		return publish_open_echo(ctx, scratch);
	if (!search_is_published(key->protocol, key->dport))
		return PUBLISH_NOT_OURS;
	port = publish_lookup(key);
	if (!port || !(port->flags & PORT_ROUTED))
		return PUBLISH_NOT_OURS;
	return flow_may_open(pkt) ?
		       publish_open_port(ctx, port) :
		       publish_result(scratch, REASON_UNKNOWN_FLOW);
}

/* Opens the flow of packets with scratch->key, which come from outside an
 * endpoint's own network. */
static __always_inline enum publish_result
publish_open(ctx_t *ctx, struct scratch *scratch)
{
	const struct flow_key *key = &scratch->key;
	bool may_open = flow_may_open(&scratch->packet);
	const struct port *port;

	if (scratch->packet.echo == ECHO_REQUEST)
		return publish_open_echo(ctx, scratch);
	if (search_is_published(key->protocol, key->dport)) {
		port = publish_find(ctx, key);
		if (port)
			return may_open ? publish_open_port(ctx, port) :
					  publish_result(scratch,
							 REASON_UNKNOWN_FLOW);
	}
	if (key->network != NETWORK_OUTSIDE)
		return PUBLISH_NOT_OURS;
	return publish_open_mapping(ctx, may_open);
}

#endif
