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

 private:
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
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
