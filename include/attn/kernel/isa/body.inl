// Floor 2. What depends on the instruction set, written once in the compiler's vector extension and included once per
// instruction set by targets.hpp, inside a namespace and a region that sets the target. No #include, no lambda (its
// operator() would not get the region's target), no exception and no allocation here or in the parts.
#include "vector.inl"
#include "convert.inl"
#include "transpose.inl"
#include "rows.inl"
#include "bfloat_pair.inl"
#include "tile.inl"
#include "softmax.inl"
#include "scores.inl"
#include "rules.inl"
#include "softcap.inl"
#include "dropout.inl"
#include "gradients.inl"
#include "weights.inl"
#include "dot.inl"
#include "byte_matrix.inl"
#include "pairs.inl"

template <class A>
inline constexpr Arithmetic<A> arithmetic{.lanes = lanes<A>,
                                          .panel_tiles = {panel_tiles<A, 1>, panel_tiles<A, 2>, panel_tiles<A, 3>},
                                          .score_rows = score_rows<A, A>,
                                          .weigh_rows = weigh_rows<A, A>,
                                          .softmax_panel = softmax_panel<A>,
                                          .softmax_line = softmax_line<A>,
                                          .transpose = transpose_rows<A, A>,
                                          .scale_rows = scale_rows<A>,
                                          .dropout_factors = dropout_factors<A>};

template <class A>
inline constexpr GradientArithmetic<A> gradient_arithmetic{.score_gradients = score_gradients<A>,
                                                           .row_products = row_products<A>};

template <class Storage, class A = AccumulatorOf<Storage>>
inline constexpr Codec<Storage> codec{
    .load = convert_rows<A, Storage>, .store = convert_rows<Storage, A>, .load_transposed = transpose_rows<A, Storage>};

template <class W>
inline constexpr WeightReader weight_reader{.bits = weight_bits<W>,
                                            .load = load_weights<W>,
                                            .multiply = multiply_weights<W>,
                                            .round_inputs = round_inputs,
                                            .multiply_groups = group_product<W>(),
                                            .multiply_groups_by_matrices = matrix_group_product<W>()};

template <class A, class Storage>
inline constexpr RowFormat<A> row_format{.converted = !std::is_same_v<A, Storage>,
                                         .scaled = std::is_same_v<Storage, ScaledBytes>,
                                         .element = sizeof(Storage),
                                         .load = load_rows<A, Storage>,
                                         .score_rows = stored_scores<A, Storage>(),
                                         .weigh_rows = stored_averages<A, Storage>(),
                                         .store = row_store<Storage>()};
