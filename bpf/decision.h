/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The result of decide: an action, and its details in struct decision. A
 * function that decides returns ACTION_UNDECIDED for "go on". It changes no
 * packet and counts none: see act.h.
 */
#ifndef EBPNET_DECISION_H
#define EBPNET_DECISION_H

#include "scratch.h"

static __always_inline enum action
decision_drop(struct scratch *scratch, enum reason reason)
{
	scratch->decision.reason = reason;
	return ACTION_DROP;
}

/* Drops the packet, and tells its sender if ICMP has an error for @reason. @mtu
 * is the longest packet that would fit, or 0. */
static __always_inline enum action
decision_refuse(struct scratch *scratch, enum reason reason, __u32 mtu)
{
	scratch->decision.reason = reason;
	scratch->decision.mtu = mtu;
	return ACTION_REFUSE;
}

/* Delivers to the local @station. */
static __always_inline enum action
decision_deliver(struct scratch *scratch, const struct station *station)
{
	scratch->decision.ifindex = station->ifindex;
	scratch->decision.endpoint = station->endpoint;
	return ACTION_DELIVER;
}

/* Addresses the frame to @station before its action. */
static __always_inline void
decision_readdress(struct scratch *scratch, const struct station *station)
{
	scratch->decision.mac = station->mac;
	scratch->decision.changes |= CHANGE_RECEIVER;
}

#endif
