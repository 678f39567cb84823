// Floor 4. Keys or values of all heads, in whatever format they are stored.
#pragma once

#include <cstddef>

#include "kernel/isa/targets.hpp"
#include "kernel/problem.hpp"
#include "kernel/row_source.hpp"
#include "tensor.hpp"

namespace attn::detail {

/// Keys or values as kernels read them.
template <class A>
struct StoredHeads {
  kernel::StoredRows rows;
  const kernel::RowFormat<A>* format;
};
template <Scalar T>
[[nodiscard]] StoredHeads<Accumulator<T>> stored_heads(View<const T, 4> x, Isa isa) {
  constexpr Index bytes = sizeof(T);
  return {{reinterpret_cast<const std::byte*>(x.data()), x.stride(0) * bytes, x.stride(1) * bytes, x.stride(2) * bytes},
          &kernel::row_format_of<Accumulator<T>, kernel::Stored<T>>(isa)};
}

}  // namespace attn::detail
