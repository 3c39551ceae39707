// clang-format off
//go:build ignore
// clang-format on

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs. Each has three stages: classify reads the packet and checks its
 * sender, decide chooses an action (decision.h), act applies it (act.h).
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "types.h"
#include "maps.h"
#include "act.h"
#include "count_command.h"
#include "detour.h"
#include "endpoint.h"
#include "host.h"
#include "overlay.h"
#include "sweep.h"
#include "uplink.h"
#include "flow_command.h"

/* Decides about a packet that an endpoint sends to a mapped port of another
 * endpoint: it is changed as if it left the host, and then comes in like one
 * from outside. RFC 4787 REQ-9. */
static __always_inline enum action
hairpin(struct __sk_buff *skb, struct scratch *scratch)
{
	bool error = scratch->decision.changes & CHANGE_ERROR;
	enum reason reason = act_change(skb, scratch);
	enum action action;

	if (reason)
		return decision_drop(scratch, reason);
	action = error ? forward_decide_error(skb, NETWORK_OUTSIDE) :
			 forward_decide(skb, NETWORK_OUTSIDE);
	if (action == ACTION_PASS)
		action = decision_drop(scratch, error ? REASON_UNKNOWN_FLOW :
							REASON_UNSOLICITED);
	return action;
}

/* Frames from a container: TC ingress of the host's end of its veth. */
SEC("tc")
int from_endpoint(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct scratch *scratch = scratch_new();
	const struct network *network;
	const struct device *device;
	enum action action;
	enum reason reason;

	if (!scratch)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	device = bpf_map_lookup_elem(&devices, &ifindex);
	if (!device)
		return verdict_drop(skb, REASON_UNKNOWN_SOURCE);
	network = bpf_map_lookup_elem(&networks, &device->network);
	if (!network)
		return verdict_drop(skb, REASON_UNKNOWN_SOURCE);
	scratch->decision.network = device->network;
	scratch->decision.sender = device->endpoint;

	reason = endpoint_classify(skb, scratch, device, network);
	action = reason ? decision_drop(scratch, reason) :
			  endpoint_decide(skb, scratch, device, network);
	count_tx(&endpoint_stats, device->endpoint, skb);
	if (action == ACTION_HAIRPIN)
		action = hairpin(skb, scratch);
	return act(skb, scratch, network, action);
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
	return verdict_pass();
}

/* Packets from the host to containers: TC ingress of the far end of its veth.
 */
SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct scratch *scratch;
	enum action action;
	enum reason reason;

	if ((skb->mark & FRAGMENT_MARK_KIND) == FRAGMENT_MARK)
		return fragment_go_on(skb);
	scratch = scratch_new();
	if (!scratch)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	reason = host_classify(skb, &scratch->packet);
	action = reason ? decision_drop(scratch, reason) :
			  host_decide(skb, scratch);
	return act(skb, scratch, NULL, action);
}

/* Frames on the detour into a tunnel, see tunnel.h: TC ingress of the near end
 * of the host's veth. Attached while there are tunnels. Packets from containers
 * to the host have no mark. */
SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	const struct network *network = NULL;
	__u32 mark = skb->mark, id;
	struct scratch *scratch;
	enum action action;
	enum reason reason;

	if (!tunnel_is_detoured(mark))
		return verdict_pass();
	scratch = scratch_new();
	if (!scratch)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	skb->mark = 0;
	scratch->decision.network = id = tunnel_network_of(mark);

	reason = parse_l3(skb, &scratch->packet, 0);
	if (!reason)
		network = bpf_map_lookup_elem(&networks, &id);
	action = reason ? decision_drop(scratch, reason) :
			  tunnel_decide_detoured(skb, scratch, mark, network);
	if (action == ACTION_ENCAPSULATE && network && !dry_run)
		return tunnel_encapsulate(skb, scratch, network, true);
	/* A refused frame is only dropped: its sender is not known here. */
	return act(skb, scratch, NULL, action);
}

/* Packets from outside: TC ingress of an uplink. Most of them are for the host,
 * and pass after one lookup. */
SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	const struct network *network = NULL;
	struct scratch *scratch;
	enum action action;
	__u32 endpoint = 0;
	enum reason reason;

	/* Frames for other MACs or VLANs are not ours: pass. Malformed ones
	 * pass too: the host drops them. */
	if (skb->pkt_type != PACKET_HOST || uplink_is_tagged(skb))
		return verdict_pass();
	if (skb->vlan_present && bpf_skb_vlan_pop(skb))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	scratch = scratch_new();
	if (!scratch || !uplink_classify(skb, scratch))
		return verdict_pass();
	if (scratch->packet.protocol != IPPROTO_GRE) {
		action = uplink_decide(skb, scratch, NETWORK_OUTSIDE);
		return act(skb, scratch, NULL, action);
	}

	reason = gre_identify(skb, &scratch->packet, &scratch->origin);
	if (reason)
		return verdict_drop(skb, reason);
	if (!scratch->origin.tunnel)
		return verdict_pass();
	network = overlay_network(scratch);
	reason = network ? overlay_classify(skb, scratch, network, &endpoint) :
			   REASON_UNKNOWN_KEY;
	action = reason ? decision_drop(scratch, reason) :
			  overlay_decide(skb, scratch, network, endpoint);
	count_rx(&tunnel_stats, scratch->origin.tunnel, skb);
	return act(skb, scratch, network, action);
}

/* Packets from the host to its own addresses: TC ingress of lo. Attached while
 * ports are published. */
SEC("tc")
int from_loopback(struct __sk_buff *skb)
{
	struct scratch *scratch = scratch_new();

	if (!scratch || !uplink_classify(skb, scratch))
		return verdict_pass();
	return act(skb, scratch, NULL,
		   uplink_decide(skb, scratch, NETWORK_LOOPBACK));
}

/* Packets that leave by an uplink: TC egress. Only packets of the host are
 * checked, not those that the datapath sends. */
SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	__u16 mark = route_send_mark(skb);
	struct scratch *scratch;

	if (skb->tc_index == mark || uplink_is_tagged(skb) ||
	    (release_mark && skb->tc_index == release_mark))
		return verdict_pass();
	skb->tc_index = mark;
	scratch = scratch_new();
	if (!scratch || !uplink_classify(skb, scratch))
		return verdict_pass();
	return act(skb, scratch, NULL, host_decide_out(skb, scratch));
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

/* Types that Go uses and no map has. bpf2go finds only the types of variables
 * and of their members. */
const struct {
	struct count_command count_command;
	enum bucket_size bucket_size;
	enum fragment_timeout fragment_timeout;
	enum mapping_slot mapping_slot;
	enum network_id network_id;
	enum owner owner;
	enum port_cells port_cells;
	enum port_source_id port_source_id;
	enum ports_rule ports_rule;
	enum published published;
	enum share_rule share_rule;
	enum state_capacity state_capacity;
	enum table_capacity table_capacity;
	enum tunnel_hash tunnel_hash;
	enum uplink_hash uplink_hash;
	enum flood_limit flood_limit;
} go_types;

char LICENSE[] SEC("license") = "Dual BSD/GPL";
