// Floor 4. Softmax over the last axis.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernel/isa/targets.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// exp(x - max) / sum of these, along the last axis. Without state: one object serves all.
/// A row that is -inf throughout gives 0, never NaN; NaN stays in its own row.
template <Scalar T>
class Softmax {
 public:
  /// Shapes: x of rank 1 to 4 -> the same shape. Types: sums in float, for double in double.
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x);
    return y;
  }

  /// The same, written into a tensor of the same shape, which may be x itself.
  /// Errors: another shape; views with gaps between their rows; an output that shares only some memory with x.
  template <class Y, detail::TensorOfElement<T> X>
  void forward_into(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: Softmax takes tensors of rank 1 to 4");
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    detail::require_packed_pair("Softmax::forward", detail::layout_of("output", y), detail::layout_of("input", x));
    const Index columns = x.dimension(rank - 1);
    if (x.size() == 0) return;
    run(x.data(), x.size() / columns, columns, y.data());
  }

  template <detail::TensorLike X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

  /// The gradient of the input, y (grad_y - sum of grad_y y), where y is what forward returned.
  /// Shapes: grad_y and y of one shape, rank 1 to 4 -> the same. Types: sums in float, for double in double.
  /// Conventions: a row that was -inf throughout has y = 0 and gradient 0. Errors: other shapes; views with gaps.
  template <detail::TensorOfElement<T> G, detail::TensorOfElement<T> Y>
  [[nodiscard]] Tensor<T, Y::NumDimensions> backward(const G& grad_y, const Y& y) const {
    auto grad_x = detail::make_tensor<T, Y::NumDimensions>(detail::shape_of(y));
    backward_into(grad_x, grad_y, y);
    return grad_x;
  }
  /// The same, written into a tensor of the same shape, which may be grad_y or y itself.
  /// Errors: besides, an output that shares only some memory with one of them.
  template <class Out, detail::TensorOfElement<T> G, detail::TensorOfElement<T> Y>
  void backward_into(Out&& to, const G& of_output, const Y& output) const {
    constexpr int rank = Y::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: Softmax takes tensors of rank 1 to 4");
    constexpr auto fn = "Softmax::backward";
    const View<T, rank> grad_x(to);
    const View<const T, rank> grad_y(of_output), y(output);
    detail::require_shape(fn, "grad_y", detail::as_shape(grad_y.shape()), detail::as_shape(y.shape()));
    detail::require_packed_pair(fn, detail::layout_of("grad_x", grad_x), detail::layout_of("grad_y", grad_y));
    detail::require_packed_pair(fn, detail::layout_of("grad_x", grad_x), detail::layout_of("y", y));
    const Index columns = y.dimension(rank - 1);
    if (y.size() == 0) return;
    run_backward(grad_y.data(), y.data(), y.size() / columns, columns, grad_x.data());
  }

 private:
  using A = Accumulator<T>;
  using Codec = kernel::Codec<kernel::Stored<T>>;

  static void run(const T* x, Index rows, Index columns, T* y) {
    const Index block = std::max<Index>(1, 4096 / columns);  // rows of one task: enough to be worth a thread's while
    const Index tasks = detail::ceil_div(rows, block);
    const auto softmax_row = kernel::softmax_row_of<kernel::Stored<T>>(active_isa());
    constexpr double exponential = 16.0;  // operations, about
    const Index room =                    // whole vectors of any instruction set
        detail::checked_size<Accumulator<T>>("Softmax::forward", "scratch memory", std::array<Index, 1>{columns + 64});
    detail::run_tasks(tasks, exponential * static_cast<double>(rows * columns), room * Index{sizeof(Accumulator<T>)},
                      [&](Index task, std::byte* memory) {
                        auto* const scratch = detail::Scratch(memory).take<Accumulator<T>>(room);
                        for (Index row = task * block; row < std::min(rows, (task + 1) * block); ++row)
                          softmax_row(kernel::stored(x + row * columns), kernel::stored(y + row * columns), columns,
                                      scratch);
                      });
  }

  static void run_backward(const T* grad_y, const T* y, Index rows, Index columns, T* grad_x) {
    const Index block = std::max<Index>(1, 4096 / columns);
    const Codec& codec = kernel::codec_of<kernel::Stored<T>>(active_isa());
    detail::run_tasks(
        detail::ceil_div(rows, block), 4.0 * static_cast<double>(rows * columns), 0, [&](Index task, std::byte*) {
          for (Index row = task * block; row < std::min(rows, (task + 1) * block); ++row)
            backward_row(codec, grad_y + row * columns, y + row * columns, columns, grad_x + row * columns);
        });
  }
  static void backward_row(const Codec& codec, const T* grad_y, const T* y, Index columns, T* grad_x) {
    constexpr Index block = 512;  // elements converted at a time: they stay in L1
    A gradients[block], outputs[block];
    const auto load = [&](Index first) {
      const Index n = std::min(block, columns - first);
      codec.load(gradients, n, kernel::stored(grad_y + first), n, 1, n);
      codec.load(outputs, n, kernel::stored(y + first), n, 1, n);
      return n;
    };
    double sum = 0.0;
    for (Index first = 0; first < columns; first += block) {
      const Index n = load(first);
      sum += static_cast<double>(detail::dot(gradients, outputs, n));
    }
    const auto mean = static_cast<A>(sum);
    for (Index first = 0; first < columns; first += block) {
      const Index n = load(first);
      for (Index i = 0; i < n; ++i) gradients[i] = outputs[i] * (gradients[i] - mean);
      codec.store(kernel::stored(grad_x + first), n, gradients, n, 1, n);
    }
  }
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
