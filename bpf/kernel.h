/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fields of the kernel's own structures that programs read. CO-RE finds the
 * fields by name in the running kernel. The address of a program's struct
 * __sk_buff is that of the struct sk_buff.
 */
#ifndef EBPNET_KERNEL_H
#define EBPNET_KERNEL_H

#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define __relocated __attribute__((preserve_access_index))

struct sk_buff {
	__u8 ip_summed : 2;
	__u16 csum_start; /* from `head` */
	__u16 csum_offset; /* from csum_start */
	unsigned int end; /* of the buffer, from `head` */
	unsigned char *head;
	unsigned char *data;
	unsigned long _skb_refdst; /* its route: a pointer, and flags */
} __relocated;

struct net_device {
	int ifindex;
} __relocated;

struct inet6_dev {
	struct net_device *dev;
} __relocated;

/* A route of IPv6. */
struct rt6_info {
	struct inet6_dev *rt6i_idev;
} __relocated;

/* Lies at the end of the buffer. */
struct skb_shared_info {
	unsigned int gso_type;
} __relocated;

/* Linux 6.2; zero before. */
void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

#endif
