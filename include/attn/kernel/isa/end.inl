// Closes a region: the settings of its beginning end here.
#if defined(ATTN_REGION_HAS_TARGET)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#undef ATTN_REGION_HAS_TARGET
#undef ATTN_VECTOR_BYTES
#undef ATTN_FUSED_MULTIPLY
#undef ATTN_VECTOR_REGISTERS
#undef ATTN_VECTOR_CONSTRAINT
