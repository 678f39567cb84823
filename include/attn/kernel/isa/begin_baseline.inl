// Opens the region of the baseline: what the compiler was told to assume, 16-byte vectors. No target to set.
#define ATTN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define ATTN_FUSED_MULTIPLY 1
#define ATTN_VECTOR_REGISTERS 32
#define ATTN_VECTOR_CONSTRAINT "w"
#else
#if defined(__FMA__)
#define ATTN_FUSED_MULTIPLY 1
#else
#define ATTN_FUSED_MULTIPLY 0
#endif
#define ATTN_VECTOR_REGISTERS 16
#if defined(__SSE2__)
#define ATTN_VECTOR_CONSTRAINT "x"
#else
#define ATTN_VECTOR_CONSTRAINT "m"
#endif
#endif
