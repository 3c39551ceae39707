// clang-format off
//go:build ignore
// clang-format on

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs and the order of their stages. Each stage is one header; a
 * stage returns 0 or the reason for a drop, and verdict.h does the dropping.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "types.h"
#include "maps.h"
#include "verdict.h"
#include "address.h"
#include "parse.h"
#include "packet.h"
#include "guard.h"
#include "guard_shared.h"
#include "count_command.h"
#include "learn.h"
#include "neigh.h"
#include "offload.h"
#include "policy.h"
#include "route.h"
#include "ecn.h"
#include "gre.h"
#include "tunnel.h"
#include "bridge.h"
#include "overlay.h"
#include "trunk.h"
#include "nat.h"
#include "masquerade.h"
#include "publish.h"
#include "icmp.h"
#include "icmp_reply.h"
#include "forward.h"
#include "gateway.h"
#include "sweep.h"
#include "flow_command.h"

/* Sends the reply to an ARP or ND request back to its device. */
static __always_inline int
answer(struct __sk_buff *skb, enum neigh_result result)
{
	if (result == NEIGH_FAILED)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	if (result == NEIGH_MALFORMED)
		return verdict_drop(skb, REASON_MALFORMED);
	return bpf_redirect(skb->ifindex, 0);
}

/* Checks that a container sends only under its own MAC and addresses. */
static __always_inline enum reason
check_endpoint(struct __sk_buff *skb, const struct device *device,
	       struct packet *pkt)
{
	if (!mac_equal(&pkt->src_mac, &device->mac))
		return REASON_SPOOFED_MAC;
	switch (pkt->ethertype) {
	case bpf_htons(ETH_P_IP):
		return guard_ipv4(skb, device, pkt);
	case bpf_htons(ETH_P_IPV6):
		return guard_ipv6(skb, device, pkt);
	case bpf_htons(ETH_P_ARP):
		return guard_arp(skb, device, pkt);
	}
	return REASON_UNKNOWN_PROTOCOL;
}

/* Whether the sender may send ICMP errors about packets to others, because it
 * is a router. It may not send them to the gateway. */
static __always_inline bool
may_judge(const struct device *device, const struct network *network,
	  const struct packet *pkt)
{
	return device->allow & ALLOW_ROUTER &&
	       mac_equal(&pkt->src_mac, &device->mac) &&
	       !gateway_is_meant(network, pkt);
}

/* Forwards a frame to a MAC that has no entry in `fdb`. */
static __always_inline int
to_unknown(struct __sk_buff *skb, struct packet *pkt,
	   const struct device *device, const struct network *network)
{
	const struct station *station =
		fdb_lookup_learned(device->network, &pkt->dst_mac);

	if (station && bridge_is_behind(skb, station))
		return verdict_consume();
	if (station)
		return bridge_forward(skb, pkt, device, network, station);
	return bridge_flood(skb, device->network, network,
			    FLOOD_TUNNELS | FLOOD_UNKNOWN, device->endpoint);
}

/* Frames from a container: TC ingress of the host's end of its veth. */
SEC("tc")
int from_endpoint(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct station *station;
	const struct network *network;
	const struct device *device;
	enum neigh_result result;
	struct packet *pkt = scratch_new_packet();
	enum reason reason;

	if (!pkt)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	device = bpf_map_lookup_elem(&devices, &ifindex);
	if (!device)
		return verdict_drop(skb, REASON_UNKNOWN_SOURCE);
	network = bpf_map_lookup_elem(&networks, &device->network);
	if (!network)
		return verdict_drop(skb, REASON_UNKNOWN_SOURCE);
	count_tx(&endpoint_stats, device->endpoint, skb);

	reason = parse_l3(skb, pkt, 0);
	if (!reason && skb->vlan_present)
		reason = REASON_UNKNOWN_PROTOCOL;
	if (!reason)
		reason = device->trunk ?
				 trunk_check(skb, device, network, pkt) :
				 check_endpoint(skb, device, pkt);
	if (!reason && pkt->ethertype == bpf_htons(ETH_P_IP) &&
	    !guard_ipv4_is_summed(skb, pkt))
		reason = REASON_MALFORMED;
	if (!reason)
		reason = offload_check(skb, pkt);
	if (reason)
		return verdict_drop(skb, reason);

	/* Also a request to a neighbor's own MAC, which asks whether the
	 * neighbor is still there: it needs no link. */
	result = neigh_answer(skb, device->network, pkt);
	if (result != NEIGH_NOT_ASKED)
		return answer(skb, result);
	if (packet_is_icmp(pkt) && !may_judge(device, network, pkt)) {
		reason = icmp_check_endpoint(skb, pkt);
		if (reason)
			return verdict_drop(skb, reason);
	}
	if (mac_is_multicast(&pkt->dst_mac))
		return bridge_flood(skb, device->network, network,
				    FLOOD_TUNNELS, device->endpoint);
	if (!gateway_is_meant(network, pkt)) {
		station = fdb_lookup_static(device->network, &pkt->dst_mac);
		if (!station)
			return to_unknown(skb, pkt, device, network);
		if (bridge_is_behind(skb, station))
			return verdict_consume();
		return bridge_forward(skb, pkt, device, network, station);
	}
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return verdict_drop(skb, REASON_UNKNOWN_DESTINATION);
	if (device->trunk)
		reason = trunk_check_outward(device, network, ifindex, pkt);
	if (reason)
		return verdict_drop(skb, reason);
	return gateway_forward(skb, pkt, device, network);
}

/* Packets from the host to containers. Here the program can still see whether
 * they came in by a device: TC egress of the near end of the host's veth. The
 * host may send from any of its addresses, but it forwards nothing to
 * containers. */
SEC("tc")
int to_gateway(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex)
		return verdict_drop(skb, REASON_NOT_FROM_HOST);
	detour_unmark(skb);
	return VERDICT_PASS;
}

/* Packets from the host to containers: TC ingress of the far end of its veth.
 */
SEC("tc")
int from_host(struct __sk_buff *skb)
{
	const struct station *station;
	enum neigh_result result;
	struct packet *pkt;
	enum reason reason;

	if ((skb->mark & FRAGMENT_MARK_KIND) == FRAGMENT_MARK)
		return fragment_go_on(skb);
	pkt = scratch_new_packet();
	if (!pkt)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	reason = parse_l3(skb, pkt, 0);
	if (!reason && pkt->ethertype == bpf_htons(ETH_P_IPV6) &&
	    pkt->protocol == IPPROTO_ICMPV6)
		reason = parse_l4(skb, pkt);
	if (reason)
		return verdict_drop(skb, reason);
	result = neigh_answer(skb, NETWORK_OUTSIDE, pkt);
	if (result != NEIGH_NOT_ASKED)
		return answer(skb, result);
	switch (pkt->ethertype) {
	case bpf_htons(ETH_P_IP):
	case bpf_htons(ETH_P_IPV6):
		break;
	case bpf_htons(ETH_P_ARP):
		return verdict_drop(skb, REASON_UNKNOWN_DESTINATION);
	default:
		return verdict_drop(skb, REASON_UNKNOWN_PROTOCOL);
	}

	station = neighbor_lookup(&pkt->dst);
	if (!station || station->kind != STATION_LOCAL)
		return verdict_drop(skb, REASON_UNKNOWN_DESTINATION);
	if (!mac_equal(&pkt->dst_mac, &station->mac)) {
		reason = deliver_veth_readdress(skb, pkt, station,
						config_gateway_mac());
		if (reason)
			return verdict_drop(skb, reason);
	}
	return deliver_peer(skb, station);
}

/* Frames on the detour into a tunnel, see tunnel.h: TC ingress of the near end
 * of the host's veth. Attached while there are tunnels. Packets from containers
 * to the host have no mark. */
SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	switch (mark & TUNNEL_MARK_KIND) {
	case TUNNEL_MARK_FRAME:
	case TUNNEL_MARK_PACKET:
		return tunnel_go_on(skb, mark);
	}
	return VERDICT_PASS;
}

/* Whether the packet is for a VLAN on the device, and not for the device. A tag
 * of VLAN 0 only tells a priority: IEEE 802.1Q, 9.6. */
static __always_inline bool vlan_is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & VLAN_ID_MASK ||
				     skb->vlan_proto != bpf_htons(ETH_P_8021Q));
}

/* Packets from outside: TC ingress of an uplink. Most of them are for the host,
 * and pass after one lookup. */
SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct gre_origin origin = {};
	struct packet *pkt;
	enum reason reason;

	/* Frames for other MACs or VLANs are not ours: pass. Malformed ones
	 * pass too: the host drops them. */
	if (skb->pkt_type != PACKET_HOST || vlan_is_tagged(skb))
		return VERDICT_PASS;
	if (skb->vlan_present && bpf_skb_vlan_pop(skb))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	pkt = scratch_new_packet();
	if (!pkt || parse_l3(skb, pkt, 0) ||
	    (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	     pkt->ethertype != bpf_htons(ETH_P_IPV6)) ||
	    parse_l4(skb, pkt))
		return VERDICT_PASS;

	if (pkt->protocol == IPPROTO_GRE) {
		reason = gre_identify(skb, pkt, &origin);
		if (reason)
			return verdict_drop(skb, reason);
		if (!origin.tunnel)
			return VERDICT_PASS;
		return overlay_deliver(skb, pkt, &origin);
	}
	if (packet_is_icmp_error(pkt)) {
		tunnel_note_mtu(skb, pkt);
		return forward_error_in(skb, pkt, NETWORK_OUTSIDE);
	}
	if (!fragment_find_ports(pkt, NETWORK_OUTSIDE,
				 FRAGMENT_IN | skb->ifindex))
		return VERDICT_PASS;
	return forward_in(skb, pkt, NETWORK_OUTSIDE);
}

/* Packets from the host to its own addresses: TC ingress of lo. Attached while
 * ports are published. */
SEC("tc")
int from_loopback(struct __sk_buff *skb)
{
	struct packet *pkt = scratch_new_packet();

	if (!pkt || parse_l3(skb, pkt, 0) ||
	    (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	     pkt->ethertype != bpf_htons(ETH_P_IPV6)) ||
	    parse_l4(skb, pkt))
		return VERDICT_PASS;
	if (packet_is_icmp_error(pkt))
		return forward_error_in(skb, pkt, NETWORK_LOOPBACK);
	if (!fragment_find_ports(pkt, NETWORK_LOOPBACK,
				 FRAGMENT_IN | skb->ifindex))
		return VERDICT_PASS;
	return forward_in(skb, pkt, NETWORK_LOOPBACK);
}

/* Whether a packet of the host needs a flow, so that no endpoint gets its port.
 * Most packets need none, because search_socket() finds their socket. It finds
 * none for echoes, forwarded packets and sockets bound to a device. Packets
 * from a port whose number is published need a flow too. */
static __always_inline bool
is_to_be_remembered(struct __sk_buff *skb, const struct packet *pkt)
{
	struct bpf_sock *sk = skb->sk;

	return pkt->echo != ECHO_NONE || skb->ingress_ifindex ||
	       (sk && sk->bound_dev_if) ||
	       search_is_published(pkt->protocol, pkt->sport);
}

/* Whether the host may open one more flow. A reply opens none. The host's flows
 * leave others their share, also if all are established: a sender outside can
 * use any source address, make the host reply from such a port, and acknowledge
 * the reply. */
static __always_inline bool may_be_remembered(const struct packet *pkt)
{
	const struct flow_share *own = share_of(OWNER_HOST),
				*all = share_of(OWNER_ALL);

	return flow_may_open(pkt) && own && all &&
	       !share_check(0, own->established + own->half_open,
			    all->established);
}

/*
 * Packets that leave by an uplink: TC egress. Only packets of the host are
 * checked, not those that the datapath sends. A packet that has the ports and
 * the destination of an endpoint's flow gets another port.
 */
SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	__u16 mark = route_send_mark(skb);
	struct scratch *scratch;
	struct packet *pkt;
	enum reason reason;
	bool needed;

	if (skb->tc_index == mark || vlan_is_tagged(skb))
		return VERDICT_PASS;
	skb->tc_index = mark;
	pkt = scratch_new_packet();
	if (!pkt || parse_l3(skb, pkt, 0) ||
	    (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	     pkt->ethertype != bpf_htons(ETH_P_IPV6)) ||
	    parse_l4(skb, pkt) ||
	    !fragment_find_ports(pkt, NETWORK_OUTSIDE,
				 FRAGMENT_OUT | skb->ifindex) ||
	    pkt->echo == ECHO_REPLY)
		return VERDICT_PASS;

	scratch = scratch_get();
	if (!scratch)
		return VERDICT_PASS;
	flow_key_of(&scratch->key, pkt, NETWORK_OUTSIDE);
	needed = masquerade_is_needed(&scratch->key, &scratch->mapping);
	if (!needed &&
	    (!is_to_be_remembered(skb, pkt) || !may_be_remembered(pkt)))
		return VERDICT_PASS;
	reason = masquerade_host(skb, pkt, scratch);
	/* Without room for its flow, the packet leaves unchanged. */
	if (reason && needed)
		return verdict_drop(skb, reason);
	return VERDICT_PASS;
}

/*
 * The programs below are not attached. The loader and the agent run them, so
 * that only the datapath writes its flows.
 */

/* Starts the sweep of flows and of learned stations. */
SEC("tc")
int sweep_flows(struct __sk_buff *skb)
{
	return sweep_start();
}

/* One tick of the sweep, to measure how long it takes. */
SEC("tc")
int sweep_once(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &key);

	if (!sweeper)
		return REASON_KERNEL_ERROR;
	sweep_tick(sweeper);
	return REASON_NONE;
}

/* Opens a flow of the old tables again: the struct flow after an Ethernet
 * header, which is too large for the stack. Returns 0, or a reason. */
SEC("tc")
int restore_flow(struct __sk_buff *skb)
{
	struct scratch *scratch = scratch_of_command();
	void *data = (void *)(long)skb->data;
	const struct flow *flow = data + sizeof(struct ethhdr);

	if (!scratch)
		return REASON_KERNEL_ERROR;
	if ((void *)(flow + 1) > (void *)(long)skb->data_end)
		return REASON_MALFORMED;
	return flow_command_restore(scratch, flow);
}

/* Adds the counts of a struct count_command after an Ethernet header. Returns
 * 0, or a reason. */
SEC("tc")
int add_counts(struct __sk_buff *skb)
{
	struct count_command command;

	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &command,
			       sizeof(command)))
		return REASON_MALFORMED;
	return count_command_run(&command);
}

/* Forgets the learned stations that match the struct learned_filter after an
 * Ethernet header. */
SEC("tc")
int forget_learned(struct __sk_buff *skb)
{
	struct learned_filter filter;

	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &filter,
			       sizeof(filter)))
		return REASON_MALFORMED;
	learn_forget(&filter);
	return REASON_NONE;
}

/* Ends the flows that match the struct flow_filter after an Ethernet header. In
 * the list of an endpoint it writes into the filter where the next run
 * continues: 0 at the end. */
SEC("tc")
int end_flows(struct __sk_buff *skb)
{
	struct scratch *scratch = scratch_of_command();

	if (!scratch)
		return REASON_KERNEL_ERROR;
	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &scratch->filter,
			       sizeof(scratch->filter)))
		return REASON_MALFORMED;
	if (!scratch->filter.endpoint) {
		bpf_loop(scratch->filter.count, flow_command_end_slot, NULL, 0);
		return REASON_NONE;
	}
	if (!scratch->filter.first)
		scratch->filter.first =
			flow_list_first(scratch->filter.endpoint);
	bpf_loop(scratch->filter.count, flow_command_end_listed, NULL, 0);
	return bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &scratch->filter,
				   sizeof(scratch->filter), 0) ?
		       REASON_KERNEL_ERROR :
		       REASON_NONE;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
