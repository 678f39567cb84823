// Opens the region of AVX2.
#define ATTN_VECTOR_BYTES 32
#define ATTN_FUSED_MULTIPLY 1
#define ATTN_VECTOR_REGISTERS 16
#define ATTN_VECTOR_CONSTRAINT "x"
#define ATTN_REGION_HAS_TARGET
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
