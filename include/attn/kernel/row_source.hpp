// Floor 2. Rows of keys or values, wherever they lie.
#pragma once

#include "../error.hpp"
#include "../scratch.hpp"
#include "arithmetic.hpp"
#include "codec.hpp"
#include "gemm.hpp"

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

/// Rows of k or v of one head, a step of keys at a time. They are read in place, or, if they need conversion, padding or
/// another stride, copied to scratch memory, each row once and only when it is asked for: keys that no query attends are
/// never read. Copies stay until their slot is needed for another step.
template <class Storage>
class RowSource {
  using A = AccumulatorOf<Storage>;

 public:
  /// How rows are read.
  struct Shape {
    Index stride;  ///< from one row to the next
    Index size;    ///< elements of a row
    bool copied;
    Index width;  ///< from one copied row to the next, at least `size` in whole vectors
    Index step;   ///< rows of a step
    Index slots;  ///< steps whose copies are kept
  };

  [[gnu::noinline]] RowSource(const Arithmetic<A>& arithmetic, const Codec<Storage>& codec, const Shape& shape,
                              attn::detail::Scratch& scratch)
      : codec_(codec), shape_(shape), padded_(arithmetic.padded(shape.size)) {
    if (!shape.copied) return;
    slots_ = scratch.take<Slot>(shape.slots);
    copy_ = scratch.take<A>(shape.slots * shape.step * shape.width);
  }

  /// Reads the rows from `first` on from now on.
  void begin(const Storage* first) {
    if (first == first_) return;
    first_ = first;
    for (Index i = 0; i < shape_.slots && shape_.copied; ++i) slots_[i] = {-1, -1};
  }

  struct Rows {
    const A* first;
    Index stride;
  };
  /// Rows `begin` to before `end` of the step that starts at `step_begin`.
  Rows rows(Index step_begin, Index begin, Index end) {
    if constexpr (!is_converted<Storage>) {
      if (!shape_.copied) return {first_ + begin * shape_.stride, shape_.stride};
    }
    Slot& slot = slot_of(step_begin);
    if (slot.step_begin != step_begin) slot = {step_begin, step_begin};
    A* const copy = copy_of(step_begin);
    if (slot.end < end) {
      load(copy + (slot.end - step_begin) * shape_.width, slot.end, end);
      slot.end = end;
    }
    return {copy + (begin - step_begin) * shape_.width, shape_.width};
  }
  /// Rows of the step at `step_begin` to prefetch, `count` of them from `begin` on: the copies, if there are any.
  [[nodiscard]] Prefetch ahead(Index step_begin, Index begin, Index count) const {
    if (shape_.copied && count > 0) {
      const Slot& slot = slot_of(step_begin);
      if (slot.step_begin == step_begin && slot.end > begin)
        return Prefetch::of(copy_of(step_begin) + (begin - step_begin) * shape_.width, shape_.width, shape_.size,
                            count);
    }
    return Prefetch::of(first_ + begin * shape_.stride, shape_.stride, shape_.size, count);
  }

 private:
  /// The step whose copy a slot holds, and the row before which the copy ends.
  struct Slot {
    Index step_begin, end;
  };

  [[nodiscard]] Index slot_index(Index step_begin) const { return step_begin / shape_.step % shape_.slots; }
  [[nodiscard]] Slot& slot_of(Index step_begin) const { return slots_[slot_index(step_begin)]; }
  [[nodiscard]] A* copy_of(Index step_begin) const {
    return copy_ + slot_index(step_begin) * shape_.step * shape_.width;
  }
  void load(A* to, Index begin, Index end) const {
    codec_.load(to, shape_.width, first_ + begin * shape_.stride, shape_.stride, end - begin, shape_.size);
    for (; begin < end; ++begin, to += shape_.width)
      for (Index i = shape_.size; i < padded_; ++i) to[i] = 0;
  }

  const Codec<Storage>& codec_;
  Shape shape_;
  Index padded_;  // elements of a row in whole vectors
  const Storage* first_ = nullptr;
  Slot* slots_ = nullptr;
  A* copy_ = nullptr;
};

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
