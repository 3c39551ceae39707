/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ARP packets: RFC 826. */
#ifndef EBPNET_ARP_H
#define EBPNET_ARP_H

#include "parse.h"

#define ARP_ETHERNET 1
#define ARP_REQUEST  1
#define ARP_REPLY    2

/* The whole of an ARP packet for IPv4 over Ethernet: RFC 826. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	struct mac sender_mac;
	__u8 sender[4];
	struct mac target_mac;
	__u8 target[4];
};
_Static_assert(sizeof(struct arp) == 28, "struct arp");

static __always_inline __be32 arp_address(const __u8 *bytes)
{
	__be32 address;

	__builtin_memcpy(&address, bytes, sizeof(address));
	return address;
}

static __always_inline bool arp_is_valid(const struct arp *arp)
{
	return arp->hardware == bpf_htons(ARP_ETHERNET) &&
	       arp->protocol == bpf_htons(ETH_P_IP) &&
	       arp->hardware_length == ETH_ALEN && arp->protocol_length == 4;
}

#endif
