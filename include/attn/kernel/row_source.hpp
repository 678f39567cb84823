// Floor 2. Rows of keys or values, wherever they lie.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "../error.hpp"
#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "gemm.hpp"
#include "problem.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// A row of n numbers in 8 bits, of which the largest has magnitude 127, and behind them, at the next multiple of 4 bytes,
/// their scale as a float. A row with infinities or NaN has a scale of NaN.
struct ScaledBytes {};

/// How rows of keys or values are stored. A is the type that sums are in.
template <class A>
struct RowFormat {
  bool converted;  ///< to A, before anything is computed with them
  bool scaled;     ///< ScaledBytes
  Index element;   ///< bytes of an element
  /// to[row][i] = from[row][i]; `from_row` is in bytes.
  void (*load)(A* to, Index to_row, const std::byte* from, Index from_row, Index rows, Index n);
  /// Attention of few queries over rows as they are stored; null where these must be copied.
  void (*score_rows)(const RowScores<A>& call);
  void (*weigh_rows)(const RowAverage<A>& call);
  /// Stores a row of n elements, rounded to nearest; null for types that sums are in, whose rows are copied.
  void (*store)(std::byte* to, const float* from, Index n);

  /// Bytes of a row.
  [[nodiscard]] Index row_bytes(Index n) const {
    return scaled ? round_up(n, Index{sizeof(float)}) + Index{sizeof(float)} : n * element;
  }
};

/// Rows of k or v of one head, a step of keys at a time. They are read in place, or, if they need conversion, padding or
/// another stride, copied to scratch memory, each row once and only when it is asked for: keys that no query attends are
/// never read. Copies stay until their slot is needed for another step.
template <class A>
class RowSource {
 public:
  /// How rows are read.
  struct Shape {
    Index stride;  ///< from one row to the next, in bytes
    Index size;    ///< elements of a row
    bool copied;
    Index padded;  ///< elements of a copied row, zeros from `size` on
    Index width;   ///< from one copied row to the next, in elements
    Index step;    ///< rows of a step, at most 64
    Index slots;   ///< steps whose copies are kept
  };

  [[gnu::noinline]] RowSource(const RowFormat<A>& format, const Shape& shape, attn::detail::Scratch& scratch)
      : format_(format), shape_(shape) {
    if (!shape.copied) return;
    slots_ = scratch.take<Slot>(shape.slots);
    copy_ = scratch.take<A>(shape.slots * shape.step * shape.width);
  }

  /// Reads the rows of this head from now on.
  void begin(const HeadRows& head) {
    if (head == head_) return;
    head_ = head;
    for (Index i = 0; i < shape_.slots && shape_.copied; ++i) slots_[i] = {-1, 0};
  }

  struct Rows {
    const A* first;
    Index stride;
  };
  /// Rows `begin` to before `end`, at least one, of the step that starts at `step_begin`.
  Rows rows(Index step_begin, Index begin, Index end) {
    if (shape_.copied) return copied_rows(step_begin, begin, end);
    const void* const row = row_at(begin);
    return {static_cast<const A*>(row), shape_.stride / Index{sizeof(A)}};
  }
  /// The same rows as bytes: as they are stored, where they are not copied.
  struct StoredRows {
    const std::byte* first;
    Index stride;  ///< in bytes
  };
  StoredRows stored_rows(Index step_begin, Index begin, Index end) {
    if (!shape_.copied) return {row_at(begin), shape_.stride};
    const Rows copies = copied_rows(step_begin, begin, end);
    return {reinterpret_cast<const std::byte*>(copies.first), copies.stride * Index{sizeof(A)}};
  }
  /// Where a row is stored.
  [[nodiscard]] const std::byte* row_at(Index t) const {
    if (head_.runs == nullptr) return head_.first + t * shape_.stride;
    return head_.runs[t / run_keys] + head_.offset + t % run_keys * shape_.stride;
  }
  /// The end of the rows that lie one after another from `begin` on, at most `end`.
  [[nodiscard]] Index stretch_end(Index begin, Index end) const {
    if (head_.runs == nullptr) return end;
    Index at = begin - begin % run_keys + run_keys;
    while (at < end && row_at(at) == row_at(at - 1) + shape_.stride) at += run_keys;
    return std::min(at, end);
  }
  /// Rows of the step at `step_begin` to prefetch, `count` of them from `begin` on: the copies, if there are any.
  [[nodiscard]] Prefetch ahead(Index step_begin, Index begin, Index count) const {
    if (count <= 0 || !is_held(begin)) return {};
    if (shape_.copied) {
      const Slot& slot = slot_of(step_begin);
      const Index row = begin - step_begin;
      if (slot.step_begin == step_begin && row < 64 && (slot.copied >> row & 1) != 0)
        return Prefetch::of(copy_of(step_begin) + row * shape_.width, shape_.width, std::min(shape_.size, shape_.width),
                            count);
    }
    return Prefetch::of(row_at(begin), shape_.stride, format_.row_bytes(shape_.size), count);
  }

 private:
  /// The step whose copies a slot holds, and a bit for each row that is copied.
  struct Slot {
    Index step_begin;
    std::uint64_t copied;
  };
  /// The bits of `count` rows from the step's row `first` on; at least one.
  [[nodiscard]] static std::uint64_t row_bits(Index first, Index count) {
    return ~std::uint64_t{0} >> (64 - count) << first;
  }

  [[nodiscard]] bool is_held(Index t) const { return head_.runs == nullptr || head_.runs[t / run_keys] != nullptr; }

  /// The same rows out of scratch memory, where those that are missing are loaded first.
  [[gnu::noinline]] Rows copied_rows(Index step_begin, Index begin, Index end) {
    Slot& slot = slot_of(step_begin);
    if (slot.step_begin != step_begin) slot = {step_begin, 0};
    A* const copy = copy_of(step_begin);
    const std::uint64_t asked = row_bits(begin - step_begin, end - begin);
    for (std::uint64_t missing = 0; (missing = asked & ~slot.copied) != 0;) {
      const Index first = std::countr_zero(missing), count = std::countr_one(missing >> first);
      load(copy + first * shape_.width, step_begin + first, step_begin + first + count);
      slot.copied |= row_bits(first, count);
    }
    return {copy + (begin - step_begin) * shape_.width, shape_.width};
  }

  [[nodiscard]] Index slot_index(Index step_begin) const { return step_begin / shape_.step % shape_.slots; }
  [[nodiscard]] Slot& slot_of(Index step_begin) const { return slots_[slot_index(step_begin)]; }
  [[nodiscard]] A* copy_of(Index step_begin) const {
    return copy_ + slot_index(step_begin) * shape_.step * shape_.width;
  }
  void load(A* to, Index begin, Index end) const {
    format_.load(to, shape_.width, row_at(begin), shape_.stride, end - begin, shape_.size);
    for (; begin < end; ++begin, to += shape_.width)
      for (Index i = shape_.size; i < shape_.padded; ++i) to[i] = 0;
  }

  const RowFormat<A>& format_;
  Shape shape_;
  HeadRows head_{nullptr};
  Slot* slots_ = nullptr;
  A* copy_ = nullptr;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
