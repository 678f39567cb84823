// Floor 4. Softmax over the last axis.
#pragma once

#include <algorithm>

#include "executor.hpp"
#include "kernel/targets.hpp"
#include "memory.hpp"
#include "tensor.hpp"

namespace attn::inline ATTN_EIGEN_ABI {

/// exp(x - max) / sum of these, along the last axis. Without state: one object serves all.
/// A row that is -inf throughout gives 0, never NaN; NaN stays in its own row.
template <Scalar T>
class Softmax {
 public:
  /// Shapes: x of rank 1 to 4 -> the same shape. Types: sums in float, for double in double.
  template <detail::TensorLike X>
  requires std::same_as<detail::Element<X>, T>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x);
    return y;
  }

  /// The same, written into a tensor of the same shape, which may be x itself.
  /// Errors: another shape; views with gaps between their rows; an output that shares only some memory with x.
  template <class Y, detail::TensorLike X>
  requires std::same_as<detail::Element<X>, T>
  void forward_into(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: Softmax takes tensors of rank 1 to 4");
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    detail::require_packed_pair("Softmax::forward", x, y, x.shape());
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
    const Index tasks = (rows + block - 1) / block;
    const auto softmax_row = kernel::softmax_row_of<kernel::Stored<T>>(active_isa());
    const Workspace::Frame frame;
    const Index room = columns + 64;  // at most 2^62 + 64: a size in bytes fits an Index, and elements take 2 or more
    const int lanes = detail::lanes(tasks, 16.0 * static_cast<double>(rows * columns));  // an exp is some 16 operations
    auto* const scratch = frame.take<Accumulator<T>>(
        detail::checked_size<Accumulator<T>>("Softmax::forward", "scratch memory", std::array<Index, 2>{lanes, room}));
    detail::for_each_task(tasks, lanes, [&](Index task, int lane) {
      for (Index row = task * block; row < std::min(rows, (task + 1) * block); ++row)
        softmax_row(kernel::stored(x + row * columns), kernel::stored(y + row * columns), columns,
                    scratch + lane * room);
    });
  }
};

}  // namespace attn::inline ATTN_EIGEN_ABI
