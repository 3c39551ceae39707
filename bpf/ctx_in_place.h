/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads a packet in place, for both forms of ctx.h. */
#ifndef EBPNET_CTX_IN_PLACE_H
#define EBPNET_CTX_IN_PLACE_H

/* Callers never ask for more. This shows it to the verifier. */
#define MAX_IN_PLACE 256

/* The @length bytes from @offset on in place; NULL if they are not in place. */
static __always_inline void *
ctx_at(const ctx_t *ctx, __u32 offset, __u32 length)
{
	void *at = ctx_data(ctx);

	/* The compiler may know that this holds; the verifier does not. */
	asm volatile("" : "+r"(offset));
	if (offset > MAX_IN_PLACE)
		return NULL;
	at += offset;
	return at + length <= ctx_end(ctx) ? at : NULL;
}

/* Reads @length bytes. Usually they are in place, which needs no call. */
static __always_inline long
ctx_load(const ctx_t *ctx, __u32 offset, void *to, __u32 length)
{
	if (__builtin_constant_p(length)) {
		const void *at = ctx_at(ctx, offset, length);

		if (at) {
			__builtin_memcpy(to, at, length);
			return 0;
		}
	}
	return ctx_load_bytes(ctx, offset, to, length);
}

#endif
