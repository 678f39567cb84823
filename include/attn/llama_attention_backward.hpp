// Floor 5. The backward pass of LlamaAttention: the steps of forward in reverse.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "attention_backward.hpp"
#include "llama_activations.hpp"
#include "llama_attention.hpp"
#include "scratch.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Makes room for the activations of a call.
template <Scalar T>
void LlamaAttention<T>::lay_out(Activations& saved, Index B, Index S) const {
  const auto lay = [&](detail::Scratch& memory) {
    const Index E = config_->hidden_size, H = config_->num_attention_heads;
    saved.x_ = View<T, 3>(memory.take<T>(B * S * E), {B, S, E});
    saved.call_ = lay_out(memory, B, S);
    saved.call_.log_sum_exp = View<Accumulator<T>, 3>(memory.take<Accumulator<T>>(B * H * S), {B, H, S});
  };
  detail::Scratch measured;
  lay(measured);
  const auto size = static_cast<std::size_t>(measured.size());
  if (saved.memory_.size() < size) saved.memory_ = AlignedVector<std::byte>(size);
  detail::Scratch memory(saved.memory_.data());
  lay(memory);
}

template <Scalar T>
template <class M>
void LlamaAttention<T>::run_saving(const View<T, 3>& y, View<const T, 3> x, const M& given, Activations& saved) const {
  const auto mask = as_mask(given);
  saved.complete_ = false;
  check(y, x, nullptr);
  for (const Linear<T>* layer : projections()) layer->check_trainable(in_forward);
  const Index B = x.dimension(0), S = x.dimension(1);
  if constexpr (detail::HasCheck<decltype(mask)>) mask.check(in_forward, B, config_->num_attention_heads, S, S);
  lay_out(saved, B, S);
  Intermediates& call = saved.call_;
  set_lengths(call, S, nullptr);
  for (Index b = 0; b < B; ++b)
    for (Index s = 0; s < S; ++s) std::copy_n(&x(b, s, 0), x.dimension(2), &saved.x_(b, s, 0));
  const auto& joined = saved.mask_.keep(join(mask, call, S, Padding()));
  const Isa isa = active_isa();
  run_steps(y, x, call, {isa, kernel::rules_of<Accumulator<T>>(isa, joined, NoScore())}, nullptr, {});
  saved.layers_ = layer_identities();
  saved.complete_ = true;
}

template <Scalar T>
std::array<const void*, 4> LlamaAttention<T>::layer_identities() const {
  return {query_.identity(), key_.identity(), value_.identity(), out_proj_.identity()};
}

template <Scalar T>
void LlamaAttention<T>::check_backward(const View<T, 3>& grad_x, View<const T, 3> grad_y, const Activations& saved,
                                       const View<Accumulator<T>, 4>& grad_mask) const {
  constexpr auto fn = "LlamaAttention::backward";
  check_projections(fn);
  for (const Linear<T>* layer : projections()) layer->check_trainable(fn);
  detail::require(!saved.empty(), fn, "activations, expected those of a forward call that succeeded, got none");
  detail::require(saved.layers_ == layer_identities(), fn,
                  "activations, expected those of a forward call of this module, got those of other projections");
  detail::require_shape(fn, "grad_y [B,S,E]", grad_y, saved.x_.shape());
  detail::require_shape(fn, "grad_x [B,S,E]", grad_x, saved.x_.shape());
  projection_dropout_.check(View<T, 3>(nullptr, grad_y.shape()), grad_y);
  query_.check(saved.call_.q, View<const T, 3>(grad_x));
  detail::require_apart(fn, detail::layout_of("grad_x", grad_x), detail::layout_of("grad_y", grad_y));
  if (detail::is_absent(grad_mask)) return;
  detail::require(saved.mask_.additive_masks() == 1, fn, "grad_mask, expected a mask with one additive tensor, got ",
                  saved.mask_.additive_masks(), " of them");
  detail::require_shape(fn, "grad_mask", grad_mask, saved.mask_.additive_shape());
  detail::require(grad_mask.stride(3) == 1 || grad_mask.dimension(3) <= 1, fn,
                  "grad_mask, expected a contiguous last axis");
}

template <Scalar T>
void LlamaAttention<T>::run_backward(const View<T, 3>& grad_x, View<const T, 3> grad_y, const Activations& saved,
                                     const View<Accumulator<T>, 4>& grad_mask) {
  check_backward(grad_x, grad_y, saved, grad_mask);
  const Intermediates& call = saved.call_;
  const View<const T, 3> x = saved.x_;
  const detail::AttentionSizes sizes = attention_sizes(x, nullptr);
  const Workspace::Frame frame;
  const auto like = [&](const View<T, 3>& tokens) { return View<T, 3>(frame.take<T>(tokens.size()), tokens.shape()); };
  const View<T, 3> grad_out = like(saved.x_), grad_context = like(call.context);
  const View<T, 3> grad_q = like(call.q), grad_k = like(call.k), grad_v = like(call.v);

  // y = dropout(out_proj(context))
  projection_dropout_.backward_into(grad_out, grad_y, call.projection_dropout);
  out_proj_.backward_into(grad_context, grad_out, View<const T, 3>(call.context));

  // context = attention(q, k, v)
  const Isa isa = active_isa();
  detail::run_checked_backward<T>(
      sizes, {split_heads(grad_q, sizes.H), split_heads(grad_k, sizes.G), split_heads(grad_v, sizes.G), grad_mask, {}},
      {split_heads(View<const T, 3>(grad_context), sizes.H),
       split_heads(View<const T, 3>(call.context), sizes.H),
       call.log_sum_exp,
       {}},
      split_heads(View<const T, 3>(call.q), sizes.H), call.keys, call.values, isa, saved.mask_.rules(isa),
      attention_options(call));

  // q, k = rotary(q, k)
  if (rotary_ != nullptr)
    rotary_->backward(split_heads(grad_q, sizes.H), split_heads(grad_k, sizes.G), call.start, call.unpadded);

  // q, k, v = query(x), key(x), value(x); where key and value are tied, one product served both
  query_.backward_into(grad_x, grad_q, x);
  if (value_.shares_with(key_))
    for (Index i = 0; i < grad_k.size(); ++i)
      grad_k.data()[i] =
          static_cast<T>(static_cast<Accumulator<T>>(grad_k.data()[i]) + static_cast<Accumulator<T>>(grad_v.data()[i]));
  else
    value_.backward_add(grad_x, grad_v, x);
  key_.backward_add(grad_x, grad_k, x);
}

template <Scalar T>
std::vector<Parameter<T>> LlamaAttention<T>::parameters() {
  static constexpr std::array<const char*, 4> names{"query", "key", "value", "out_proj"};
  std::vector<Parameter<T>> all;
  const auto layers = projections();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const bool listed = std::any_of(layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(i),
                                    [&](const Linear<T>* before) { return before->shares_with(*layers[i]); });
    if (listed) continue;
    for (const Parameter<T>& parameter : layers[i]->parameters()) all.push_back(parameter.within(names[i]));
  }
  return all;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
