// Floor 5. What a forward call of LlamaAttention keeps for the backward pass.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "attention_backward.hpp"
#include "memory.hpp"
#include "philox.hpp"
#include "rotary_positions.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// What the steps of a call of LlamaAttention hand on to each other: views of memory that a workspace frame holds, or
/// activations, which keep it.
template <Scalar T>
struct LlamaIntermediates {
  View<T, 3> q{};               ///< queries [B,S,H*D]
  View<T, 3> k{};               ///< keys of this call [B,K,G*D]: K is S, or the context's length
  View<T, 3> v{};               ///< values of this call [B,K,G*Dv]
  View<T, 3> attended{};        ///< what attention makes of them [B,S,H*Dv]
  View<T, 3> projected{};       ///< queries and gates as they are projected [B,S,H*(D+Dv)]; absent without gates
  View<T, 3> gates{};           ///< [B,S,H*Dv]; absent without
  View<T, 3> gated{};           ///< `attended` times the sigmoid of `gates`; `attended` itself without
  View<T, 3> plain_q{};         ///< queries before their norm; q itself where nobody reads them
  View<T, 3> plain_k{};         ///< keys before their norm; k itself where nobody reads them
  std::span<Index> start{};     ///< position of each sequence's first token
  std::span<Index> lengths{};   ///< length of each sequence, with this call
  std::span<Index> unpadded{};  ///< the same without padding, where rotary asks for it; else empty
  std::span<double> sinks{};    ///< the score of each head's sink, or empty
  RotaryPositions positions{};  ///< where tokens stand, for rotary
  View<const T, 4> keys{};      ///< k, by heads [B,G,K,D]: what queries attend to where there is no cache
  View<const T, 4> values{};    ///< v, by heads [B,G,K,Dv]
  View<Accumulator<T>, 3> log_sum_exp{};  ///< of the scores [B,H,S], for a backward pass; else absent
  DropoutRule attention_dropout{};        ///< which weights were dropped
  DropoutRule projection_dropout{};       ///< which outputs were dropped
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

/// What a call computes, and of what, besides its mask and score function.
template <Scalar T>
struct LlamaArguments {
  View<T, 3> y{};
  View<const T, 3> x{};
  View<const T, 3> context{};   ///< of cross-attention [B,K,C]; else absent
  KvCache<T>* cache = nullptr;  ///< of cross-attention: the context's keys and values
  RotaryPositions positions{};
  View<T, 4> weights{};
};

/// What backward writes; what was not asked for is absent.
template <Scalar T>
struct LlamaGradients {
  View<T, 3> x;
  View<T, 3> context;
  View<Accumulator<T>, 4> mask;
};

/// A mask and a score function as the kernels of an instruction set see them. Refers to both.
template <Scalar T>
struct BoundRules {
  Isa isa;
  kernel::Rules<Accumulator<T>> rules;
};

/// A mask and a score function of any type, kept from a forward call to the backward pass, with what that asks of them.
/// Those of the next call take their place without an allocation unless they are larger.
template <class A>
class KeptRules {
 public:
  KeptRules() = default;
  KeptRules(KeptRules&& other) noexcept
      : memory_(std::move(other.memory_)), functions_(std::exchange(other.functions_, nullptr)) {}
  KeptRules& operator=(KeptRules&& other) noexcept {
    clear();
    memory_ = std::move(other.memory_), functions_ = std::exchange(other.functions_, nullptr);
    return *this;
  }
  ~KeptRules() { clear(); }

  template <Mask M, class F>
  struct Both {
    M mask;
    F score;
  };
  template <Mask M, class F>
  const Both<M, F>& keep(const M& mask, const F& score) {
    static_assert(alignof(Both<M, F>) <= cache_line);
    clear();
    if (memory_.size() < sizeof(Both<M, F>)) memory_ = AlignedVector<std::byte>(sizeof(Both<M, F>));
    const auto* const kept = ::new (static_cast<void*>(memory_.data())) Both<M, F>{mask, score};
    functions_ = &functions<M, F>;
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
  template <class M, class F>
  static constexpr Functions functions{
      .rules =
          [](Isa isa, const void* kept) {
            const auto& both = *static_cast<const Both<M, F>*>(kept);
            return kernel::gradient_rules_of<A>(isa, both.mask, both.score);
          },
      .additive_shape =
          [](const void* kept) {
            if constexpr (detail::additive_masks<M> == 1)
              return detail::additive_shape(static_cast<const Both<M, F>*>(kept)->mask);
            else
              return static_cast<void>(kept), std::array<Index, 4>{};
          },
      .destroy = [](void* kept) { std::destroy_at(static_cast<Both<M, F>*>(kept)); },
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
/// Memory for each token: its input and its output before the output projection, queries, keys and values, E + H (D + Dv) +
/// G (D + Dv) elements of T (a tied value counts with rotary or a norm alone), and H accumulators; with norms, queries and
/// keys twice; with gates, H (D + 3 Dv) elements more. The context of cross-attention is copied as the input is. The mask
/// and the score function are copied; a tensor that they view must outlive the backward pass. One that was moved from is
/// empty.
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
  View<T, 3> x_;        // the input [B,S,E]
  View<T, 3> context_;  // of cross-attention [B,K,C]; else absent
  LlamaIntermediates<T> call_{};
  detail::KeptRules<Accumulator<T>> rules_;
  std::array<const void*, 4> layers_{};  // whose activations these are
  detail::EmptyWhenMoved<bool> complete_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
