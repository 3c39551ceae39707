/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct and enum that the programs share with each other and with Go.
 * bpf2go makes the Go types from these. Addresses, ports and GRE keys are in
 * network order. Padding is explicit and zero, because it is part of map keys.
 */
#ifndef EBPNET_TYPES_H
#define EBPNET_TYPES_H

#include "types_common.h"
#include "types_flows.h"
#include "types_internal.h"
#include "types_state.h"
#include "types_tables.h"

#endif
