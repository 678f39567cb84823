// Floor 4. The backward pass of Linear: checks, then the plan.
#pragma once

#include <string_view>
#include <utility>

#include "kernel/linear_backward.hpp"
#include "linear.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

template <Scalar T>
void Linear<T>::check_backward(const detail::Layout& grad_x, const detail::Layout& grad_y,
                               const detail::Layout& x) const {
  constexpr auto fn = "Linear::backward";
  check_pair(fn, x, grad_y);
  if (grad_x.address == 0 && !detail::has_elements(grad_x.shape)) return;
  detail::require_shape(fn, "grad_x", grad_x.shape, x.shape);
  detail::require(detail::row_distance(grad_x.shape, grad_x.stride) >= 0, fn,
                  "grad_x, expected a packed view, or rows that lie equally far apart");
  detail::require_apart(fn, grad_x, x);
  detail::require_apart(fn, grad_x, grad_y);
}

template <Scalar T>
void Linear<T>::run_backward(T* grad_x, const detail::Layout& grad_x_layout, const T* grad_y,
                             const detail::Layout& grad_y_layout, const T* x, const detail::Layout& x_layout,
                             bool add) {
  check_backward(grad_x_layout, grad_y_layout, x_layout);
  make_gradients("Linear::backward");
  const Index rows = rows_of(x_layout.shape);
  if (rows == 0) return;
  const kernel::LinearBackwardProblem<Stored, Stored> problem{
      .x = kernel::stored(x),
      .weight = kernel::stored(std::as_const(*parameters_).weight.data()),
      .grad_y = kernel::stored(grad_y),
      .grad_x = kernel::stored(grad_x),
      .weight_gradient = parameters_->weight_gradient.elements().data(),
      .bias_gradient = has_bias() ? parameters_->bias_gradient.data() : nullptr,
      .rows = rows,
      .in = in_features(),
      .out = out_features(),
      .x_row = detail::row_distance(x_layout.shape, x_layout.stride),
      .grad_y_row = detail::row_distance(grad_y_layout.shape, grad_y_layout.stride),
      .grad_x_row = grad_x == nullptr ? 0 : detail::row_distance(grad_x_layout.shape, grad_x_layout.stride),
      .add = add};
  const Isa isa = active_isa();
  const kernel::LinearKernels<Stored> kernels = kernels_of<Stored>(isa);
  const Index threads{current_executor().concurrency()};
  const auto& codec = kernel::codec_of<Stored>(isa);
  if constexpr (std::same_as<T, Eigen::bfloat16>)
    if (const auto* const pairs = active_pairs(isa))
      return detail::run_tasks(
          kernel::LinearBackwardTasks<Stored, Stored, kernel::BfloatPair>(problem, kernels, codec, threads, pairs));
  detail::run_tasks(kernel::LinearBackwardTasks<Stored, Stored>(problem, kernels, codec, threads));
}

template <Scalar T>
void Linear<T>::make_gradients(std::string_view fn) {
  check_trainable(fn);
  Parameters& own = *parameters_;
  if (own.weight_gradient.in() > 0) return;
  AlignedVector<Accumulator<T>> bias_gradient(own.bias.size(), Accumulator<T>{0});
  own.weight_gradient = PackedMatrix<Accumulator<T>>(out_features(), in_features());
  own.bias_gradient = std::move(bias_gradient);
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
