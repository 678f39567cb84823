// Floor 2. What depends on the instruction set, written once in the compiler's vector extension and included once per
// instruction set by targets.hpp, inside a namespace and a region that sets the target. No #include, no lambda (its
// operator() would not get the region's target), no exception and no allocation here or in the parts.
#include "vector.inl"
#include "tile.inl"
#include "softmax.inl"
#include "scores.inl"
#include "dropout.inl"

template <class T>
inline constexpr Kernels<T> kernels{
    lanes<AccumulatorOf<T>>,
    {panel_tiles<AccumulatorOf<T>, 1>, panel_tiles<AccumulatorOf<T>, 2>, panel_tiles<AccumulatorOf<T>, 3>},
    {few_tiles<AccumulatorOf<T>, 2, few_vectors>, few_tiles<AccumulatorOf<T>, 4, few_vectors / 2>,
     few_tiles<AccumulatorOf<T>, 4, 1>},
    score_rows<AccumulatorOf<T>>,
    softmax_panel<AccumulatorOf<T>>,
    softmax_line<AccumulatorOf<T>>,
    turn<AccumulatorOf<T>, T>,
    turn<AccumulatorOf<T>, AccumulatorOf<T>>,
    scale_rows<AccumulatorOf<T>>,
    dropout_factors<AccumulatorOf<T>>,
    convert_rows<AccumulatorOf<T>, T>,
    convert_rows<T, AccumulatorOf<T>>};

// The settings were this inclusion's.
#undef ATTN_VECTOR_BYTES
#undef ATTN_FUSED_MULTIPLY
#undef ATTN_VECTOR_REGISTERS
#undef ATTN_VECTOR_CONSTRAINT
