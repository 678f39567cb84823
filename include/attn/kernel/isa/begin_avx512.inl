// Opens the region of AVX-512.
#define ATTN_VECTOR_BYTES 64
#define ATTN_FUSED_MULTIPLY 1
#define ATTN_VECTOR_REGISTERS 32
#define ATTN_VECTOR_CONSTRAINT "v"
#define ATTN_REGION_HAS_TARGET
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")
#endif
