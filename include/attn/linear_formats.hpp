// Floor 4. Weights of linear layers in fewer bits than their activations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "linear.hpp"

namespace attn::detail {

/// What reads a stored weight, on an instruction set.
[[nodiscard]] inline const kernel::WeightReader& reader_of(WeightFormat format, Isa isa) {
  if (format == WeightFormat::int8) return kernel::weight_reader_of<kernel::Int8>(isa);
  if (format == WeightFormat::int4) return kernel::weight_reader_of<kernel::Int4>(isa);
  if (format == WeightFormat::half) return kernel::weight_reader_of<kernel::Half>(isa);
  return kernel::weight_reader_of<kernel::Bfloat16>(isa);
}

/// What multiplies a stored weight by inputs in 8 bits; null where these are multiplied as floats.
[[nodiscard]] inline kernel::GroupProduct group_product_of(const kernel::WeightReader& reader, Isa isa) {
  if (!byte_dots(isa)) return nullptr;
  return cpu_has_byte_matrices() ? reader.multiply_groups_by_matrices : reader.multiply_groups;
}

/// A format that weights of T can be stored in; T itself is native. Errors: one that does not exist.
template <Scalar T>
[[nodiscard]] WeightFormat checked_format(std::string_view fn, WeightFormat format) {
  require(format <= WeightFormat::int4, fn, "format, expected native, bfloat16, half, int8 or int4, got WeightFormat(",
          static_cast<Index>(format), ")");
  const bool own = (std::same_as<T, Eigen::half> && format == WeightFormat::half) ||
                   (std::same_as<T, Eigen::bfloat16> && format == WeightFormat::bfloat16);
  return own ? WeightFormat::native : format;
}

}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

template <Scalar T>
void Linear<T>::check_store_weights(WeightFormat format) const {
  constexpr auto fn = "Linear::store_weights";
  detail::require(parameters_ != nullptr, fn, "layer, expected one with parameters, got one moved from");
  format = detail::checked_format<T>(fn, format);
  if (format != weight_format()) check_storable(format, fn, weight());
}

template <Scalar T>
void Linear<T>::store_weights(WeightFormat format) {
  constexpr auto fn = "Linear::store_weights";
  detail::require(parameters_ != nullptr, fn, "layer, expected one with parameters, got one moved from");
  format = detail::checked_format<T>(fn, format);
  if (format == weight_format()) return;
  const Tensor<T, 2> weight = this->weight();
  if (format == WeightFormat::native) {
    PackedMatrix<T> native(out_features(), in_features());
    native.set(weight);
    parameters_->weight = std::move(native);
    parameters_->stored = {};
    return;
  }
  hold(stored_as(format, fn, weight));
}

/// Replaces the weight by a stored one; what only training needs goes.
template <Scalar T>
void Linear<T>::hold(StoredWeight weight) {
  parameters_->stored = std::move(weight);
  parameters_->run_stored = run_stored;
  parameters_->weight = {};
  parameters_->weight_gradient = {};
  parameters_->bias_gradient = {};
}

template <Scalar T>
void Linear<T>::set_quantised_weight(std::span<const std::byte> blocks) {
  constexpr auto fn = "Linear::set_quantised_weight";
  detail::require(parameters_ != nullptr, fn, "layer, expected one with parameters, got one moved from");
  const auto expected = [&](WeightFormat format) {
    return out_features() * StoredWeight::row_bytes(format, in_features());
  };
  const Index of_int8 = expected(WeightFormat::int8), of_int4 = expected(WeightFormat::int4), size = std::ssize(blocks);
  detail::require(size == of_int8 || size == of_int4, fn, "blocks, expected ", of_int8, " bytes of Q8_0 or ", of_int4,
                  " of Q4_0, got ", size);
  hold_rows(fn, size == of_int8 ? WeightFormat::int8 : WeightFormat::int4, blocks);
}

template <Scalar T>
void Linear<T>::set_stored_weight(WeightFormat format, std::span<const std::byte> rows) {
  constexpr auto fn = "Linear::set_stored_weight";
  detail::require(parameters_ != nullptr, fn, "layer, expected one with parameters, got one moved from");
  format = detail::checked_format<T>(fn, format);
  detail::require(format != WeightFormat::native, fn,
                  "format, expected another one than the layer's own type, which set_weight takes, got native");
  const Index expected = out_features() * StoredWeight::row_bytes(format, in_features());
  detail::require(std::ssize(rows) == expected, fn, "rows, expected ", expected, " bytes of ",
                  weight_format_name(format), ", got ", std::ssize(rows));
  hold_rows(fn, format, rows);
}

/// Replaces the weight by rows of the right size.
template <Scalar T>
void Linear<T>::hold_rows(std::string_view fn, WeightFormat format, std::span<const std::byte> rows) {
  const Index overlong = StoredWeight::first_overlong(format, out_features(), in_features(), rows.data());
  detail::require(overlong == out_features(), fn, "rows, expected blocks with 0 past input ", in_features() - 1,
                  ", got another number in output ", overlong);
  hold(StoredWeight::of_rows(format, out_features(), in_features(), rows.data()));
}

template <Scalar T>
std::vector<std::byte> Linear<T>::quantised_weight() const {
  constexpr auto fn = "Linear::quantised_weight";
  const WeightFormat format = weight_format();
  detail::require(is_grouped(format), fn, "weight, expected one stored as int8 or int4, got ",
                  weight_format_name(format));
  const Index row = StoredWeight::row_bytes(format, in_features());
  std::vector<std::byte> blocks(static_cast<std::size_t>(out_features() * row));
  for (Index o = 0; o < out_features(); ++o) parameters_->stored.get_blocks(o, blocks.data() + o * row);
  return blocks;
}

template <Scalar T>
void Linear<T>::check_storable(WeightFormat format, std::string_view fn, View<const T, 2> weight) const {
  if (format == WeightFormat::native) return;
  const Workspace::Frame frame;
  auto* const row = frame.take<float>(in_features());
  for (Index o = 0; o < out_features(); ++o) {
    for (Index i = 0; i < in_features(); ++i) row[i] = static_cast<float>(weight(o, i));
    const Index i = StoredWeight::first_unstorable(format, row, in_features());
    detail::require(i == in_features(), fn, "weight, expected numbers that ", weight_format_name(format),
                    " can hold, got ", i < in_features() ? static_cast<double>(row[i]) : 0.0, " of output ", o,
                    ", input ", i);
  }
}

template <Scalar T>
StoredWeight Linear<T>::stored_as(WeightFormat format, std::string_view fn, View<const T, 2> weight) const {
  check_storable(format, fn, weight);
  StoredWeight stored(format, out_features(), in_features());
  stored.for_each_part([&](Index first, Index end, float* row) {
    for (Index o = first; o < end; ++o) {
      for (Index i = 0; i < in_features(); ++i) row[i] = static_cast<float>(weight(o, i));
      stored.set_row(o, row);
    }
  });
  return stored;
}

/// Rows of double are computed in float.
template <Scalar T>
void Linear<T>::run_stored(const StoredWeight& weight, const kernel::LinearProblem<Stored>& problem, Isa isa) {
  const kernel::WeightReader& reader = detail::reader_of(weight.format(), isa);
  const kernel::StoredPanels panels{.reader = reader,
                                    .first = weight.part(),
                                    .in = weight.inputs(),
                                    .multiply_groups = detail::group_product_of(reader, isa)};
  if constexpr (std::same_as<T, double>) {
    const Workspace::Frame frame;
    auto* const x = frame.take<float>(problem.rows * problem.in);
    auto* const y = frame.take<float>(problem.rows * problem.out);
    auto* const bias = frame.take<float>(problem.out);
    for (Index row = 0; row < problem.rows; ++row)
      std::copy_n(problem.x + row * problem.x_row, problem.in, x + row * problem.in);
    if (problem.bias != nullptr) std::copy_n(problem.bias, problem.out, bias);
    run_panels(kernel::LinearProblem<float>{.x = x,
                                            .bias = problem.bias != nullptr ? bias : nullptr,
                                            .y = y,
                                            .rows = problem.rows,
                                            .in = problem.in,
                                            .out = problem.out,
                                            .x_row = problem.in,
                                            .y_row = problem.out},
               isa, panels);
    for (Index row = 0; row < problem.rows; ++row)
      std::copy_n(y + row * problem.out, problem.out, problem.y + row * problem.y_row);
  } else {
    run_panels(problem, isa, panels);
  }
}

/// How far the weights of a layer in a format are from those that it holds, relative to the largest of them and to their
/// root mean square.
struct QuantisationError {
  double largest = 0;
  double root_mean_square = 0;
};

/// What storing a layer's weights in a format would cost in accuracy; the layer stays as it is. A layer whose weights are
/// all 0 has errors of 0. Errors: as Linear::store_weights.
template <Scalar T>
[[nodiscard]] QuantisationError quantisation_error(const Linear<T>& linear, WeightFormat format) {
  Linear<T> stored(linear);
  stored.store_weights(format);
  const Tensor<T, 2> exact = linear.weight(), rounded = stored.weight();
  double largest = 0, largest_error = 0, squares = 0, squared_errors = 0;
  for (Index i = 0; i < exact.size(); ++i) {
    const auto x = static_cast<double>(exact.data()[i]), error = static_cast<double>(rounded.data()[i]) - x;
    largest = std::max(largest, std::abs(x));
    largest_error = std::max(largest_error, std::abs(error));
    squares += x * x, squared_errors += error * error;
  }
  if (!detail::is_positive(largest)) return {};
  return {.largest = largest_error / largest, .root_mean_square = std::sqrt(squared_errors / squares)};
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
