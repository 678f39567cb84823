// Floor 5. The backward pass of LlamaAttention: the steps of forward in reverse.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "attention_backward.hpp"
#include "llama_activations.hpp"
#include "llama_attention.hpp"
#include "scratch.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Makes room for the activations of a call.
template <Scalar T>
void LlamaAttention<T>::lay_out(Activations& saved, const Arguments& arguments) const {
  const View<const T, 3>&x = arguments.x, &context = arguments.context;
  const Index B = x.dimension(0), S = x.dimension(1), H = config_->num_attention_heads;
  const bool own_positions = rotary_ != nullptr && !arguments.positions.empty();
  Index* positions = nullptr;
  const auto lay = [&](detail::Scratch& memory) {
    saved.x_ = View<T, 3>(memory.take<T>(x.size()), x.shape());
    saved.context_ = is_cross() ? View<T, 3>(memory.take<T>(context.size()), context.shape()) : View<T, 3>();
    saved.call_ = lay_out(memory, B, S, is_cross() ? context.dimension(1) : S, true);
    saved.call_.log_sum_exp = View<Accumulator<T>, 3>(memory.take<Accumulator<T>>(B * H * S), {B, H, S});
    positions = memory.take<Index>(own_positions ? arguments.positions.copy_size(B, S, rotary_->pairs()) : 0);
  };
  detail::Scratch measured;
  lay(measured);
  const auto size = static_cast<std::size_t>(measured.size());
  if (saved.memory_.size() < size) saved.memory_ = AlignedVector<std::byte>(size);
  detail::Scratch memory(saved.memory_.data());
  lay(memory);
  set_up(saved.call_, arguments);
  if (own_positions) saved.call_.positions = arguments.positions.copy(positions, B, S, rotary_->pairs());
}

template <Scalar T>
template <class M, class F>
void LlamaAttention<T>::run_saving(const Arguments& arguments, const M& given, const F& score,
                                   Activations& saved) const {
  const auto mask = as_mask(given);
  saved.complete_ = false;
  check(arguments);
  for (const Linear<T>* layer : projections()) layer->check_trainable(in_forward);
  const detail::AttentionSizes n = attention_sizes(arguments.x, arguments.context, nullptr);
  if constexpr (detail::HasCheck<decltype(mask)>) mask.check(in_forward, n.B, n.H, n.S, n.T);
  if constexpr (detail::HasCheck<F>) score.check(in_forward, n.B, n.H, n.S, n.T);
  lay_out(saved, arguments);
  const auto copy = [](const View<T, 3>& to, const View<const T, 3>& from) {
    for (Index b = 0; b < from.dimension(0); ++b)
      for (Index s = 0; s < from.dimension(1); ++s) std::copy_n(&from(b, s, 0), from.dimension(2), &to(b, s, 0));
  };
  copy(saved.x_, arguments.x);
  copy(saved.context_, arguments.context);
  const auto& rules = saved.rules_.keep(join(mask, saved.call_, n.S, Padding()), detail::after_cap(score));
  const Isa isa = active_isa();
  run_steps(arguments, saved.call_, {isa, kernel::rules_of<Accumulator<T>>(isa, rules.mask, rules.score)});
  saved.layers_ = layer_identities();
  saved.complete_ = true;
}

template <Scalar T>
std::array<const void*, 4> LlamaAttention<T>::layer_identities() const {
  return {query_.identity(), key_.identity(), value_.identity(), out_proj_.identity()};
}

template <Scalar T>
void LlamaAttention<T>::check_backward(const Gradients& out, View<const T, 3> grad_y, const Activations& saved) const {
  constexpr auto fn = "LlamaAttention::backward";
  check_projections(fn);
  for (const Linear<T>* layer : projections()) layer->check_trainable(fn);
  detail::require(!saved.empty(), fn, "activations, expected those of a forward call that succeeded, got none");
  detail::require(saved.layers_ == layer_identities(), fn,
                  "activations, expected those of a forward call of this module, got those of other projections");
  detail::require_shape(fn, "grad_y [B,S,E]", grad_y, saved.x_.shape());
  detail::require_shape(fn, "grad_x [B,S,E]", out.x, saved.x_.shape());
  projection_dropout_.check(View<T, 3>(nullptr, grad_y.shape()), grad_y);
  query_.check(View<T, 3>(nullptr, {saved.call_.q.dimension(0), saved.call_.q.dimension(1), sizes().projected}),
               View<const T, 3>(out.x));
  detail::require_apart(fn, detail::layout_of("grad_x", out.x), detail::layout_of("grad_y", grad_y));
  if (!detail::is_absent(out.context)) {
    detail::require(is_cross(), fn, "grad_context, expected none without context_size");
    detail::require_shape(fn, "grad_context [B,K,C]", out.context, saved.context_.shape());
    key_.check(saved.call_.k, View<const T, 3>(out.context));
    for (const detail::Layout& other : {detail::layout_of("grad_x", out.x), detail::layout_of("grad_y", grad_y)})
      detail::require_apart(fn, detail::layout_of("grad_context", out.context), other);
  }
  if (detail::is_absent(out.mask)) return;
  detail::require(saved.rules_.additive_masks() == 1, fn, "grad_mask, expected a mask with one additive tensor, got ",
                  saved.rules_.additive_masks(), " of them");
  detail::require_shape(fn, "grad_mask", out.mask, saved.rules_.additive_shape());
  detail::require(out.mask.stride(3) == 1 || out.mask.dimension(3) <= 1, fn,
                  "grad_mask, expected a contiguous last axis");
}

template <Scalar T>
void LlamaAttention<T>::run_backward(const Gradients& out, View<const T, 3> grad_y, const Activations& saved) {
  check_backward(out, grad_y, saved);
  const Intermediates& call = saved.call_;
  const detail::AttentionSizes sizes = attention_sizes(saved.x_, saved.context_, nullptr);
  const Index tokens = sizes.B * sizes.S;
  const Workspace::Frame frame;
  const auto like = [&](const View<T, 3>& x) { return View<T, 3>(frame.take<T>(x.size()), x.shape()); };
  const View<T, 3> grad_attended = like(call.attended);
  Intermediates grad;
  grad.q = like(call.q), grad.k = like(call.k), grad.v = like(call.v), grad.gates = like(call.gates);
  grad.projected = config_->output_gate ? like(call.projected) : grad.q;

  // y = dropout(out_proj(gated)), gated = attended * sigmoid(gates)
  View<const T, 3> grad_out = grad_y;
  if (call.projection_dropout.active()) {
    const View<T, 3> kept = like(saved.x_);
    projection_dropout_.backward_into(kept, grad_y, call.projection_dropout);
    grad_out = kept;
  }
  out_proj_.backward_into(grad_attended, grad_out, View<const T, 3>(call.gated));
  if (config_->output_gate)
    detail::apply_gates_backward(grad_attended.data(), grad.gates.data(), grad_attended.data(), call.attended.data(),
                                 call.gates.data(), tokens, sizes.H * sizes.Dv);

  // attended = attention(q, k, v)
  const Isa isa = active_isa();
  kernel::GradientRules<Accumulator<T>> rules = saved.rules_.rules(isa);
  rules.forward = config_->softcap.before(rules.forward, isa);
  const auto heads = static_cast<Index>(call.sinks.size());
  const View<Accumulator<T>, 1> grad_sinks(frame.take<Accumulator<T>>(heads), {heads});
  detail::run_checked_backward<T>(sizes,
                                  {split_heads(grad.q, sizes.H),
                                   split_heads(grad.k, sizes.G),
                                   split_heads(grad.v, sizes.G),
                                   out.mask,
                                   {},
                                   sinks_ != nullptr ? grad_sinks : View<Accumulator<T>, 1>()},
                                  {split_heads(View<const T, 3>(grad_attended), sizes.H),
                                   split_heads(View<const T, 3>(call.attended), sizes.H),
                                   call.log_sum_exp,
                                   {}},
                                  split_heads(View<const T, 3>(call.q), sizes.H), call.keys, call.values, isa, rules,
                                  attention_options(call));
  for (Index h = 0; h < heads; ++h) sinks_->gradient[static_cast<std::size_t>(h)] += grad_sinks(h);

  // q, k = rotary(norm(q, k))
  if (rotary_ != nullptr)
    rotary_->backward(split_heads(grad.q, sizes.H), split_heads(grad.k, sizes.G), call.positions, call.unpadded);
  const auto norm_backward = [](RmsNorm<T>& norm, const View<T, 3>& gradient, const View<T, 3>& x) {
    const std::array<Index, 2> shape{x.size() / norm.size(), norm.size()};
    const View<T, 2> rows(gradient.data(), shape);
    norm.backward_into(rows, View<const T, 2>(rows), View<const T, 2>(x.data(), shape));
  };
  if (query_norm_ != nullptr) norm_backward(*query_norm_, grad.q, call.plain_q);
  if (key_norm_ != nullptr) norm_backward(*key_norm_, grad.k, call.plain_k);

  // q and gates = parts of query(x)
  if (config_->output_gate)
    detail::join_parts(grad.projected.data(), grad.q.data(), sizes.D, grad.gates.data(), sizes.Dv, sizes.H, tokens);
  backward_of_projections(out, saved, grad);
}

template <Scalar T>
void LlamaAttention<T>::backward_of_projections(const Gradients& out, const Activations& saved,
                                                const Intermediates& grad) {
  // q, k, v = query(x), key(source), value(source); where key and value are tied, one product served both
  query_.backward_into(out.x, grad.projected, View<const T, 3>(saved.x_));
  const View<const T, 3> source = is_cross() ? saved.context_ : saved.x_;
  const View<T, 3> grad_source = is_cross() ? out.context : out.x;
  const bool add = !is_cross();
  const auto through = [&](Linear<T>& layer, const View<T, 3>& gradient, bool adds) {
    if (adds)
      layer.backward_add(grad_source, gradient, source);
    else
      layer.backward_into(grad_source, gradient, source);
  };
  if (value_.shares_with(key_)) {
    for (Index i = 0; i < grad.k.size(); ++i)
      grad.k.data()[i] =
          static_cast<T>(static_cast<Accumulator<T>>(grad.k.data()[i]) + static_cast<Accumulator<T>>(grad.v.data()[i]));
    return through(key_, grad.k, add);
  }
  through(value_, grad.v, add);
  through(key_, grad.k, true);
}

template <Scalar T>
std::vector<Parameter<T>> LlamaAttention<T>::parameters() {
  static constexpr std::array<const char*, 4> names{"query", "key", "value", "out_proj"};
  std::vector<Parameter<T>> all;
  const auto add = [&](auto&& parameters, const char* part) {
    for (const Parameter<T>& parameter : parameters) all.push_back(parameter.within(part));
  };
  const auto layers = projections();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const bool listed = std::any_of(layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(i),
                                    [&](const Linear<T>* before) { return before->shares_with(*layers[i]); });
    if (!listed) add(layers[i]->parameters(), names[i]);
  }
  if (query_norm_ != nullptr) add(query_norm_->parameters(), "query_norm");
  if (key_norm_ != nullptr) add(key_norm_->parameters(), "key_norm");
  if (sinks_ != nullptr) all.emplace_back("sinks", std::span(sinks_->scores), std::span(sinks_->gradient));
  return all;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
