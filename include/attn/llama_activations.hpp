// Floor 5. What a forward call of LlamaAttention keeps for the backward pass.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

#include "attention_backward.hpp"
#include "memory.hpp"
#include "philox.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// What the steps of a call of LlamaAttention hand on to each other: views of memory that a workspace frame holds, or
/// activations, which keep it.
template <Scalar T>
struct LlamaIntermediates {
  View<T, 3> q;                           ///< queries [B,S,H*D]
  View<T, 3> k;                           ///< keys of this call [B,S,G*D]
  View<T, 3> v;                           ///< values of this call [B,S,G*D]
  View<T, 3> context;                     ///< what attention makes of them [B,S,H*D]
  std::span<Index> start;                 ///< position of each sequence's first token
  std::span<Index> lengths;               ///< length of each sequence, with this call
  std::span<Index> unpadded;              ///< the same without padding, where rotary asks for it; else empty
  View<const T, 4> keys{};                ///< k, by heads [B,G,S,D]: what queries attend to where there is no cache
  View<const T, 4> values{};              ///< v, by heads [B,G,S,D]
  View<Accumulator<T>, 3> log_sum_exp{};  ///< of the scores [B,H,S], for a backward pass; else absent
  DropoutRule attention_dropout{};        ///< which weights were dropped
  DropoutRule projection_dropout{};       ///< which outputs were dropped
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

/// A mask of any type, kept from a forward call to the backward pass, with what that asks of it. A mask of the same size
/// takes the place of the one before without an allocation.
template <class A>
class KeptMask {
 public:
  KeptMask() = default;
  KeptMask(KeptMask&& other) noexcept
      : memory_(std::move(other.memory_)), functions_(std::exchange(other.functions_, nullptr)) {}
  KeptMask& operator=(KeptMask&& other) noexcept {
    clear();
    memory_ = std::move(other.memory_), functions_ = std::exchange(other.functions_, nullptr);
    return *this;
  }
  ~KeptMask() { clear(); }

  template <Mask M>
  const M& keep(const M& mask) {
    static_assert(alignof(M) <= cache_line);
    clear();
    if (memory_.size() < sizeof(M)) memory_ = AlignedVector<std::byte>(sizeof(M));
    const M* const kept = ::new (static_cast<void*>(memory_.data())) M(mask);
    functions_ = &functions<M>;
    return *kept;
  }

  [[nodiscard]] kernel::GradientRules<A> rules(Isa isa) const { return functions_->rules(isa, memory_.data()); }
  [[nodiscard]] int additive_masks() const { return functions_->additive_masks; }
  /// Of the only additive mask.
  [[nodiscard]] std::array<Index, 4> additive_shape() const { return functions_->additive_shape(memory_.data()); }

 private:
  struct Functions {
    kernel::GradientRules<A> (*rules)(Isa, const void*);
    std::array<Index, 4> (*additive_shape)(const void*);
    void (*destroy)(void*);
    int additive_masks;
  };
  static constexpr NoScore no_score{};

  template <class M>
  static constexpr Functions functions{.rules =
                                           [](Isa isa, const void* mask) {
                                             return kernel::gradient_rules_of<A>(isa, *static_cast<const M*>(mask),
                                                                                 no_score);
                                           },
                                       .additive_shape =
                                           [](const void* mask) {
                                             if constexpr (detail::additive_masks<M> == 1)
                                               return detail::additive_shape(*static_cast<const M*>(mask));
                                             else
                                               return static_cast<void>(mask), std::array<Index, 4>{};
                                           },
                                       .destroy = [](void* mask) { std::destroy_at(static_cast<M*>(mask)); },
                                       .additive_masks = detail::additive_masks<M>};

  void clear() {
    if (functions_ != nullptr) functions_->destroy(memory_.data());
    functions_ = nullptr;
  }

  AlignedVector<std::byte> memory_;
  const Functions* functions_ = nullptr;
};

}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

template <Scalar T>
class LlamaAttention;

/// What LlamaAttention::forward keeps for LlamaAttention::backward. Made once and given to every step of a training loop, it
/// allocates only where a step is larger than all before.
///
/// Memory for each token: its input and its output before the output projection, queries, keys and values, E + 2 H D + 2 G D
/// elements of T (a tied value counts with rotary alone), and H accumulators. The mask is copied; a tensor that it views
/// must outlive the backward pass. One that was moved from is empty.
template <Scalar T>
class LlamaActivations {
 public:
  LlamaActivations() = default;

  /// Whether a forward call has left its activations here, for any number of backward passes.
  [[nodiscard]] bool empty() const { return !*complete_; }
  /// Bytes held.
  [[nodiscard]] std::size_t capacity() const { return memory_.size(); }

 private:
  friend class LlamaAttention<T>;

  AlignedVector<std::byte> memory_;
  View<T, 3> x_;  // the input [B,S,E]
  LlamaIntermediates<T> call_{};
  detail::KeptMask<Accumulator<T>> mask_;
  std::array<const void*, 4> layers_{};  // whose activations these are
  detail::EmptyWhenMoved<bool> complete_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
