// Floor 4. A matrix in the layout in which the linear kernel reads it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "kernel/problem.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// The weight of a linear layer, packed into panels of `width` outputs: element (output o, input i) is number
/// (o / width * in + i) * width + o % width. Past the last output, panels are filled with zeros.
/// Shapes: [out,in] outside, [ceil(out / width)][in][width] inside. A matrix that was moved from is empty.
template <Scalar T>
class PackedMatrix {
 public:
  /// Outputs of a panel: whole tiles of every instruction set, so that the layout does not depend on the one in use.
  static constexpr Index width = kernel::panel_width<T>;

  PackedMatrix() = default;
  /// Zeros. Errors: sizes that are negative or that memory cannot hold.
  PackedMatrix(Index out, Index in) : held_(Held{out, in, AlignedVector<T>(padded_size(out, in), T(0))}) {}

  [[nodiscard]] Index out() const { return held_->out; }
  [[nodiscard]] Index in() const { return held_->in; }
  /// All panels, one after another.
  [[nodiscard]] const T* data() const { return held_->elements.data(); }
  [[nodiscard]] std::span<T> elements() { return held_->elements; }
  /// The first element of an output; its other inputs follow, each `width` further.
  [[nodiscard]] T* row(Index o) { return held_->elements.data() + row_offset(o); }
  [[nodiscard]] const T* row(Index o) const { return held_->elements.data() + row_offset(o); }

  /// Takes over a matrix [out,in], any strides. Errors: another shape.
  void set(View<const T, 2> matrix) {
    detail::require_shape("PackedMatrix::set", "matrix [out,in]", matrix, {out(), in()});
    for_each_block([&](Index first, Index outputs, Index begin, Index end) {
      T* to = row(first) + begin * width;
      const T* const from = matrix.data() + first * matrix.stride(0);
      for (Index i = begin; i < end; ++i, to += width)
        for (Index o = 0; o < outputs; ++o) to[o] = from[o * matrix.stride(0) + i * matrix.stride(1)];
    });
  }
  /// The matrix, [out,in].
  [[nodiscard]] Tensor<T, 2> get() const {
    auto matrix = detail::make_tensor<T, 2>({out(), in()});
    for_each_block([&](Index first, Index outputs, Index begin, Index end) {
      const T* const from = row(first);
      for (Index o = 0; o < outputs; ++o)
        for (Index i = begin; i < end; ++i) matrix.data()[(first + o) * in() + i] = from[i * width + o];
    });
    return matrix;
  }

 private:
  struct Held {
    Index out = 0, in = 0;
    AlignedVector<T> elements;
  };

  static std::size_t padded_size(Index out, Index in) {
    const auto checked = [&](Index rows) {
      return detail::checked_size<T>("Linear", "weight [out,in]", detail::as_shape(std::array<Index, 2>{rows, in}));
    };
    checked(out);  // then rounding up does not overflow
    return static_cast<std::size_t>(checked(detail::round_up(out, width)));
  }
  [[nodiscard]] Index row_offset(Index o) const { return o / width * in() * width + o % width; }

  /// Visits the matrix panel by panel, on several threads where that is worth it, a cache line of each output's inputs at a
  /// time, so that what is read and what is written stay in L1: block(first output, outputs, first input, end of inputs).
  template <class Block>
  void for_each_block(const Block& block) const {
    constexpr Index inputs = 64 / static_cast<Index>(sizeof(T));
    constexpr double work_of_an_element = 4;
    detail::run_tasks(detail::ceil_div(out(), width), work_of_an_element * static_cast<double>(out() * in()), 0,
                      [&](Index panel, std::byte*) {
                        const Index first = panel * width;
                        for (Index i = 0; i < in(); i += inputs)
                          block(first, std::min(width, out() - first), i, std::min(i + inputs, in()));
                      });
  }

  detail::EmptyWhenMoved<Held> held_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
