/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The settings of the programs. The loader sets them before load. They do not
 * change afterwards. */
#ifndef EBPNET_CONFIG_H
#define EBPNET_CONFIG_H

#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "types.h"

/* True in a copy of the programs that only tells what would happen to a packet:
 * it decides on the live tables, and writes none of them but scratch. Nothing
 * attaches it. */
const volatile bool dry_run = false;

/* The mark of packets that version e41502a sends by an uplink, while its
 * from_endpoint() may still run; 0: it does not. See route_send_mark(). */
const volatile __u16 release_mark = 0;

/* The near end of the host's own veth. Packets for the host go in here. */
const volatile __u32 gateway_ifindex = 0;
/* Its far end. */
const volatile __u32 datapath_ifindex = 0;
const volatile struct mac gateway_mac = {};

/* Copies byte by byte. A copy of the whole struct would not be volatile, and
 * the compiler would use the zeros it knows. */
static __always_inline struct mac config_gateway_mac(void)
{
	struct mac mac;

	for (unsigned long i = 0; i < sizeof(mac.byte); i++)
		mac.byte[i] = gateway_mac.byte[i];
	return mac;
}

/* Flags of bpf_fib_lookup() that this kernel knows. */
const volatile __u32 fib_flags = 0;

/* Flags for bpf_skb_adjust_room(): with them skb->protocol is right for an
 * inner packet of either family. Zero before kernel 6.3. */
const volatile __u32 decap_ipv4_flags = 0;
const volatile __u32 decap_ipv6_flags = 0;

/* How long a flow lives without a packet, in nanoseconds: RFC 5382 REQ-5,
 * RFC 4787 REQ-5, RFC 5508 REQ-2. */
#define SECONDS 1000000000ULL
const volatile __u64 tcp_established_timeout = 7440 * SECONDS;
const volatile __u64 tcp_transitory_timeout = 240 * SECONDS;
const volatile __u64 udp_established_timeout = 300 * SECONDS;
const volatile __u64 udp_new_timeout = 120 * SECONDS;
const volatile __u64 icmp_timeout = 60 * SECONDS;

/* How long a learned station stays without a packet from it: IEEE 802.1Q-2018,
 * table 8-6. */
const volatile __u64 learned_timeout = 300 * SECONDS;

/* How many entries `flows` has, and how many of them may be half-open. */
const volatile __u32 flow_slots = DEFAULT_FLOWS + MAX_HALF_OPEN;
const volatile __u32 half_open_slots = MAX_HALF_OPEN;

/* The grace period of an ended flow's slot: longer than any program runs that
 * may have found it. It is two ticks of a clock with 100 ticks a second,
 * because the first tick may be almost over. */
const volatile __u64 flow_grace = 2 * SECONDS / 100;

/* The host's ports for masqueraded endpoints, in host order. */
const volatile __u16 first_port = 1;
const volatile __u16 last_port = 65535;

#endif
