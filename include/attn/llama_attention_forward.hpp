// Floor 5. LlamaAttention, forward: checks, then the steps.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string_view>

#include "llama_attention.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

template <Scalar T>
void LlamaAttention<T>::check_projections(std::string_view fn) const {
  const Index E = config_->hidden_size;
  detail::require(E > 0, fn, "module, expected one with projections, got one moved from");
  const std::array<std::string_view, 4> names{"query", "key", "value", "out_proj"};
  const std::array<std::array<Index, 2>, 4> expected{{{E, sizes().projected},
                                                      {sizes().key_inputs, sizes().keys},
                                                      {sizes().key_inputs, sizes().values},
                                                      {sizes().attended, E}}};
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::array<Index, 2> got{projections()[i]->in_features(), projections()[i]->out_features()};
    detail::require(got == expected[i], fn, names[i], " [in,out], expected ", detail::as_shape(expected[i]), ", got ",
                    detail::as_shape(got));
  }
}

template <Scalar T>
void LlamaAttention<T>::check_cache(std::string_view fn, Index B, Index S, const KvCache<T>& cache) const {
  const std::array<Index, 4> expected{B, config_->num_key_value_heads, config_->head_dim, config_->value_head_dim};
  const std::array<Index, 4> got{cache.batch(), cache.key_value_heads(), cache.head_size(), cache.value_size()};
  detail::require(got == expected, fn, "cache [batch, key/value heads, head size, value size], expected ",
                  detail::as_shape(expected), ", got ", detail::as_shape(got));
  const Index window = is_cross() ? 0 : config_->window.value_or(0);
  detail::require(cache.window() == 0 || (window != 0 && window <= cache.window()), fn,
                  "cache, expected one without a window, or with at least the module's of ", window,
                  " tokens (0: none), got a window of ", cache.window());
  if (is_cross()) return;
  detail::require(
      !rotary_ || cache.capacity() <= rotary_->same_up_to(), fn,
      "cache, expected RotaryConfig::length or LlamaAttentionConfig::max_length to be set (cached keys do not "
      "follow the length) or a capacity of at most original_length = ",
      rotary_ ? rotary_->same_up_to() : 0, ", got ", cache.capacity());
  cache.check_room(S);
}

template <Scalar T>
void LlamaAttention<T>::check_context(std::string_view fn, Index B, View<const T, 3> context, bool cached) const {
  const bool given = !detail::is_absent(context);
  if (!is_cross()) return detail::require(!given, fn, "context, expected none without context_size");
  detail::require(given != cached, fn, "cross-attention, expected a context or the cache that make_context gives, got ",
                  given ? "both" : "neither");
  if (given)
    detail::require(context.dimension(0) == B && context.dimension(2) == config_->context_size, fn,
                    "context [B,K,C], expected B = ", B, " and C = ", config_->context_size, ", got ",
                    detail::as_shape(context.shape()));
}

template <Scalar T>
void LlamaAttention<T>::check(const Arguments& arguments) const {
  const auto& [y, x, context, cache, positions, weights] = arguments;
  const Index B = x.dimension(0), S = x.dimension(1);
  check_projections(in_forward);
  detail::require(x.dimension(2) == config_->hidden_size, in_forward, "input [B,S,E], expected a last dimension of ",
                  config_->hidden_size, ", got ", detail::as_shape(x.shape()));
  detail::require_shape(in_forward, "output [B,S,E]", y, x.shape());
  const std::array<Index, 3> queries{B, S, sizes().projected}, attended{B, S, sizes().attended};
  detail::checked_size<T>(in_forward, "queries [B,S,H*D]", detail::as_shape(queries));
  detail::checked_size<T>(in_forward, "output of attention [B,S,H*Dv]", detail::as_shape(attended));
  query_.check(View<T, 3>(nullptr, queries), x);
  out_proj_.check(y, View<const T, 3>(nullptr, attended));
  projection_dropout_.check(y, View<const T, 3>(y));
  check_context(in_forward, B, context, cache != nullptr);
  if (cache != nullptr) check_cache(in_forward, B, S, *cache);
  if (rotary_ && !positions.empty()) positions.check(in_forward, B, S, rotary_->pairs());
  const detail::AttentionSizes n = attention_sizes(x, context, cache);
  detail::require(detail::fits_positions(n) && n.D <= detail::most_indices && n.Dv <= detail::most_indices, in_forward,
                  "expected at most 2^30 queries, keys and heads, got x ", detail::as_shape(x.shape()), ", keys ", n.T);
  detail::require(!config_->max_length || n.T <= *config_->max_length, in_forward,
                  "sequence, expected at most max_length = ", config_->max_length.value_or(0), " tokens, got ", n.T);
}

template <Scalar T>
LlamaIntermediates<T> LlamaAttention<T>::lay_out(detail::Scratch& memory, Index B, Index S, Index K,
                                                 bool training) const {
  const auto tokens = [&](Index n, Index size) { return View<T, 3>(memory.take<T>(B * n * size), {B, n, size}); };
  const auto numbers = [&](Index n) { return std::span(memory.take<Index>(n), static_cast<std::size_t>(n)); };
  const Index heads = config_->sinks ? config_->num_attention_heads : 0;
  Intermediates call{.q = tokens(S, sizes().queries),
                     .k = tokens(K, sizes().keys),
                     .v = tokens(K, sizes().values),
                     .attended = tokens(S, sizes().attended),
                     .start = numbers(B),
                     .lengths = numbers(B),
                     .unpadded = numbers(rotary_ && S > rotary_->same_up_to() ? B : 0),
                     .sinks = std::span(memory.take<double>(heads), static_cast<std::size_t>(heads))};
  const bool keeps_plain = training && query_norm_ != nullptr;
  call.plain_q = keeps_plain ? tokens(S, sizes().queries) : call.q;
  call.plain_k = keeps_plain ? tokens(K, sizes().keys) : call.k;
  call.gated = call.attended;
  if (config_->output_gate) {
    call.projected = tokens(S, sizes().projected);
    call.gates = tokens(S, sizes().attended);
    if (training) call.gated = tokens(S, sizes().attended);
  }
  return call;
}

template <Scalar T>
LlamaIntermediates<T> LlamaAttention<T>::begin(const Workspace::Frame& frame, const Arguments& arguments) const {
  const Index B = arguments.x.dimension(0), S = arguments.x.dimension(1);
  const Index K = is_cross() ? arguments.context.dimension(1) : S;
  detail::Scratch measured;
  lay_out(measured, B, S, K, false);
  detail::Scratch memory(frame.take<std::byte>(measured.size()));
  Intermediates call = lay_out(memory, B, S, K, false);
  set_up(call, arguments);
  return call;
}

template <Scalar T>
void LlamaAttention<T>::set_up(Intermediates& call, const Arguments& arguments) const {
  const Index S = arguments.x.dimension(1);
  for (std::size_t b = 0; b < call.start.size(); ++b) {
    const Index cached = arguments.cache != nullptr ? arguments.cache->lengths()[b] : 0;
    call.lengths[b] = cached + (is_cross() ? arguments.context.dimension(1) : S);
    call.start[b] = call.lengths[b] - S;
  }
  for (std::size_t h = 0; h < call.sinks.size(); ++h) call.sinks[h] = static_cast<double>(sinks_->scores[h]);
  call.positions = arguments.positions.empty() ? RotaryPositions(call.start) : arguments.positions;
}

template <Scalar T>
void LlamaAttention<T>::project(Intermediates& call, View<const T, 3> x, View<const T, 3> source) const {
  if (config_->output_gate) {
    multiply(query_, call.projected, x);
    detail::split_parts(call.projected.data(), call.plain_q.data(), config_->head_dim, call.gates.data(),
                        config_->value_head_dim, config_->num_attention_heads, x.dimension(0) * x.dimension(1));
  } else {
    multiply(query_, call.plain_q, x);
  }
  project_keys(call, source);
}

template <Scalar T>
void LlamaAttention<T>::project_keys(Intermediates& call, View<const T, 3> source) const {
  if (call.k.size() == 0) return;  // a context whose keys and values are in a cache
  multiply(key_, call.plain_k, source);
  if (!value_.shares_with(key_)) {
    multiply(value_, call.v, source);
  } else if (rotary_ != nullptr || key_norm_ != nullptr) {
    std::copy_n(call.plain_k.data(), call.k.size(), call.v.data());
  } else {
    call.v = call.k;
  }
}

template <Scalar T>
void LlamaAttention<T>::normalise(const Intermediates& call) const {
  if (query_norm_ == nullptr) return;
  const auto rows = [](const RmsNorm<T>& norm, const View<T, 3>& y, const View<T, 3>& x) {
    const std::array<Index, 2> shape{x.size() / norm.size(), norm.size()};
    norm.forward_into(View<T, 2>(y.data(), shape), View<const T, 2>(x.data(), shape));
  };
  rows(*query_norm_, call.q, call.plain_q);
  rows(*key_norm_, call.k, call.plain_k);
}

template <Scalar T>
void LlamaAttention<T>::rotate(const Intermediates& call) const {
  if (rotary_ == nullptr) return;
  const View<T, 4> q = split_heads(call.q, config_->num_attention_heads);
  const View<T, 4> k = split_heads(call.k, config_->num_key_value_heads);
  rotary_->apply(q, k, call.positions, call.unpadded);
}

template <Scalar T>
void LlamaAttention<T>::append(Intermediates& call, KvCache<T>* cache) const {
  const Index G = config_->num_key_value_heads;
  call.keys = split_heads(call.k, G), call.values = split_heads(call.v, G);
  if (cache != nullptr && !is_cross()) cache->write(call.keys, call.values);
}

template <Scalar T>
AttentionOptions LlamaAttention<T>::attention_options(const Intermediates& call) const {
  const DropoutRule& dropout = call.attention_dropout;
  AttentionOptions options;
  options.scale = config_->scale;
  options.query_start = call.start;
  options.sinks = call.sinks;
  if (dropout.active())
    options.dropout = attention_dropout_.p(), options.seed = dropout.seed, options.call = dropout.call;
  return options;
}

template <Scalar T>
void LlamaAttention<T>::attend(const Intermediates& call, const detail::AttentionSizes& sizes, const BoundRules& rules,
                               const KvCache<T>* cache, View<T, 4> weights) const {
  const AttentionOptions options = attention_options(call);
  const AttentionOutputs<T> out{split_heads(call.attended, sizes.H), call.log_sum_exp, weights};
  const auto keys = cache != nullptr ? cache->stored_keys(rules.isa) : detail::stored_heads(call.keys, rules.isa);
  const auto values = cache != nullptr ? cache->stored_values(rules.isa) : detail::stored_heads(call.values, rules.isa);
  detail::run_checked<T>(sizes, out, split_heads(call.q, sizes.H), keys, values, rules.isa,
                         config_->softcap.before(rules.rules, rules.isa), options);
}

template <Scalar T>
void LlamaAttention<T>::output(const View<T, 3>& y, Intermediates& call) const {
  if (config_->output_gate)
    detail::apply_gates(call.gated.data(), call.attended.data(), call.gates.data(),
                        call.gated.dimension(0) * call.gated.dimension(1), sizes().attended);
  multiply(out_proj_, y, call.gated);
  projection_dropout_.forward_into(y, View<const T, 3>(y), call.projection_dropout);
}

template <Scalar T>
void LlamaAttention<T>::run_steps(const Arguments& arguments, Intermediates& call, const BoundRules& rules) const {
  const auto& [y, x, context, cache, positions, weights] = arguments;
  const detail::AttentionSizes sizes = attention_sizes(x, context, cache);
  call.attention_dropout = attention_dropout_.next_rule();
  try {
    project(call, x, is_cross() ? context : x);
    normalise(call);
    rotate(call);
    append(call, cache);
    attend(call, sizes, rules, cache, weights);
    output(y, call);
  } catch (...) {
    attention_dropout_.give_back(call.attention_dropout);
    throw;
  }
  if (cache != nullptr && !is_cross()) cache->commit(x.dimension(1));  // cannot fail
}

template <Scalar T>
template <class M>
auto LlamaAttention<T>::join(const M& mask, const Intermediates& call, Index S, const Padding& ends) const {
  for (std::size_t b = 0; b < call.unpadded.size(); ++b)
    call.unpadded[b] =
        detail::length_seen<Accumulator<T>>(mask, static_cast<Index>(b), config_->num_attention_heads, S);
  const SlidingWindow window = config_->window ? SlidingWindow(*config_->window) : SlidingWindow::unlimited();
  return mask & window & ends;
}

template <Scalar T>
template <class M, class F>
void LlamaAttention<T>::run(const Arguments& arguments, const M& given, const F& score) const {
  const auto mask = as_mask(given);
  check(arguments);
  const detail::AttentionSizes n = attention_sizes(arguments.x, arguments.context, arguments.cache);
  if constexpr (detail::HasCheck<decltype(mask)>) mask.check(in_forward, n.B, n.H, n.S, n.T);
  if constexpr (detail::HasCheck<F>) score.check(in_forward, n.B, n.H, n.S, n.T);
  const Workspace::Frame frame;
  Intermediates call = begin(frame, arguments);
  const auto& capped = detail::after_cap(score);
  const auto joined = join(mask, call, n.S, arguments.cache != nullptr ? Padding(call.lengths) : Padding());
  const Isa isa = active_isa();
  run_steps(arguments, call, {isa, kernel::rules_of<Accumulator<T>>(isa, joined, capped)});
}

template <Scalar T>
KvCache<T> LlamaAttention<T>::project_context(View<const T, 3> context) const {
  constexpr auto fn = "LlamaAttention::make_context";
  check_projections(fn);
  detail::require(is_cross(), fn, "module, expected one with context_size");
  const Index B = context.dimension(0), K = context.dimension(1);
  check_context(fn, B, context, false);
  const std::array<Index, 3> shape{B, K, sizes().keys + sizes().values};
  detail::checked_size<T>(fn, "keys and values", detail::as_shape(shape));
  const Workspace::Frame frame;
  Arguments arguments;
  arguments.x = View<const T, 3>(nullptr, {B, 0, config_->hidden_size});
  arguments.context = context;
  Intermediates call = begin(frame, arguments);
  project_keys(call, context);
  normalise(call);
  append(call, nullptr);
  KvCache<T> cache = make_cache(B, K);
  cache.append(call.keys, call.values);
  return cache;
}

template <Scalar T>
Tensor<T, 1> LlamaAttention<T>::sinks() const {
  const Sinks& sinks = detail::existing("LlamaAttention::sinks", sinks_);
  auto scores = detail::make_tensor<T, 1>({std::ssize(sinks.scores)});
  std::copy(sinks.scores.begin(), sinks.scores.end(), scores.data());
  return scores;
}

template <Scalar T>
void LlamaAttention<T>::set_sinks(View<const T, 1> sinks) {
  constexpr auto fn = "LlamaAttention::set_sinks";
  Sinks& own = detail::existing(fn, sinks_);
  detail::require_shape(fn, "sinks [H]", sinks, {std::ssize(own.scores)});
  for (Index h = 0; h < sinks.size(); ++h)
    detail::require(detail::is_finite(static_cast<Accumulator<T>>(sinks(h))), fn,
                    "sinks, expected finite numbers, got ", static_cast<double>(sinks(h)));
  for (Index h = 0; h < sinks.size(); ++h) own.scores[static_cast<std::size_t>(h)] = sinks(h);
}

template <Scalar T>
Tensor<Accumulator<T>, 1> LlamaAttention<T>::sinks_gradient() const {
  const Sinks& sinks = detail::existing("LlamaAttention::sinks_gradient", sinks_);
  auto gradient = detail::make_tensor<Accumulator<T>, 1>({std::ssize(sinks.gradient)});
  std::copy(sinks.gradient.begin(), sinks.gradient.end(), gradient.data());
  return gradient;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
