// Edge. Linear layers and norms from GGUF files.
#pragma once

#include <array>
#include <concepts>
#include <string_view>

#include "../linear.hpp"
#include "../rms_norm.hpp"
#include "gguf.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Sets the weight of a layer to a tensor [out,in] of a file, in as many bits as the file has where attn computes with
/// them:
///
/// | in the file | in the layer |
/// |---|---|
/// | F32, F64, the layer's own type | native |
/// | F16, BF16 | half, bfloat16 |
/// | Q8_0, Q4_0 | int8, int4 |
/// | other quantised types | native, multiplied out |
///
/// Nothing but the conversion to the layer's type is lost. A layer that is to be trained:
/// store_weights(WeightFormat::native).
/// Errors: a name that is not there, a shape that is not the layer's, a type that is not read. The layer is then as it
/// was.
template <Scalar T>
void load_weight(Linear<T>& linear, const GgufFile& file, std::string_view name) {
  constexpr auto fn = "load_weight";
  const GgufTensor from = file.tensor(name);
  const std::array<Index, 2> expected{linear.out_features(), linear.in_features()};
  detail::require(detail::same_shape(from.shape, detail::as_shape(expected)), fn, name, ", expected [out,in] ",
                  detail::as_shape(expected), ", got ", Shape(from.shape));
  const auto stored = [&](WeightFormat format) { linear.set_stored_weight(format, from.bytes); };
  if (from.type == GgufType::q8_0) return stored(WeightFormat::int8);
  if (from.type == GgufType::q4_0) return stored(WeightFormat::int4);
  if (from.type == GgufType::f16 && !std::same_as<T, Eigen::half>) return stored(WeightFormat::half);
  if (from.type == GgufType::bf16 && !std::same_as<T, Eigen::bfloat16>) return stored(WeightFormat::bfloat16);
  const auto native = [&](View<const T, 2> weight) {
    linear.store_weights(WeightFormat::native);
    linear.set_weight(weight);
  };
  if (file.has_view<T>(name)) return native(file.view<T, 2>(name));
  const Tensor<T, 2> converted = file.read<T, 2>(name);
  native(converted);
}

/// Sets the bias of a layer to a tensor [out] of a file. Errors: as above; a layer without bias.
template <Scalar T>
void load_bias(Linear<T>& linear, const GgufFile& file, std::string_view name) {
  linear.set_bias(file.read<T, 1>(name));
}

/// Sets the weight of a norm to a tensor [size] of a file. Errors: as above.
template <Scalar T>
void load_weight(RmsNorm<T>& norm, const GgufFile& file, std::string_view name) {
  norm.set_weight(file.read<T, 1>(name));
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
