/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Link-local addresses of the host. A packet that the host sends to one of them
 * goes by lo, but its socket is bound to the device that has the address, and
 * the kernel takes the answer from no other device.
 */
#ifndef EBPNET_LOOPBACK_H
#define EBPNET_LOOPBACK_H

#include "config.h"
#include "kernel.h"
#include "uplink_find.h"

/* The lowest bit of _skb_refdst is no part of the pointer: SKB_DST_NOREF. */
#define LOOPBACK_ROUTE_MASK (~1UL)

/* Finds the MAC of a device whose ingress takes packets: an uplink, or the near
 * end of the host's own veth. False for any other device. */
static __always_inline bool loopback_find_mac(__u32 ifindex, struct mac *mac)
{
	const struct uplink *uplink;

	if (ifindex == gateway_ifindex) {
		*mac = config_gateway_mac();
		return true;
	}
	uplink = ifindex ? uplink_find(ifindex) : NULL;
	if (uplink)
		*mac = uplink->receiver.mac;
	return uplink;
}

/* The device that has the link-local address to which the host sends an IPv6
 * packet by lo; 0 if the device is not known, or if its ingress takes no
 * packets. */
static __noinline __u32 loopback_device(struct __sk_buff *skb)
{
	unsigned long route;
	struct rt6_info *rt;
	struct mac mac;
	__u32 ifindex;

	if (!bpf_core_field_exists(struct rt6_info, rt6i_idev))
		return 0;
	route = BPF_CORE_READ((struct sk_buff *)skb, _skb_refdst);
	rt = (void *)(route & LOOPBACK_ROUTE_MASK);
	ifindex = BPF_CORE_READ(rt, rt6i_idev, dev, ifindex);
	return loopback_find_mac(ifindex, &mac) ? ifindex : 0;
}

#endif
