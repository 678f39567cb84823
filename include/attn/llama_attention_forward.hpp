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
  const std::array<std::array<Index, 2>, 4> expected{
      {{E, query_size()}, {E, key_size()}, {E, key_size()}, {query_size(), E}}};
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::array<Index, 2> got{projections()[i]->in_features(), projections()[i]->out_features()};
    detail::require(got == expected[i], fn, names[i], " [in,out], expected ", detail::as_shape(expected[i]), ", got ",
                    detail::as_shape(got));
  }
}

template <Scalar T>
void LlamaAttention<T>::check_cache(std::string_view fn, Index B, Index S, const KvCache<T>& cache) const {
  const Index G = config_->num_key_value_heads, D = config_->head_dim;
  const std::array<Index, 4> expected{B, G, D, D};
  const std::array<Index, 4> got{cache.batch(), cache.key_value_heads(), cache.head_size(), cache.value_size()};
  detail::require(got == expected, fn, "cache [batch, key/value heads, head size, value size], expected ",
                  detail::as_shape(expected), ", got ", detail::as_shape(got));
  detail::require(!rotary_ || cache.capacity() <= rotary_->same_up_to(), fn,
                  "cache, expected RotaryConfig::length to be set (cached keys do not follow the length) or a capacity "
                  "of at most original_length = ",
                  rotary_ ? rotary_->same_up_to() : 0, ", got ", cache.capacity());
  detail::require(cache.window() == 0 || (config_->window && *config_->window <= cache.window()), fn,
                  "cache, expected one that keeps the module's window of ", config_->window.value_or(cache.capacity()),
                  " tokens, got a window of ", cache.window());
  cache.check_room(S);
}

template <Scalar T>
void LlamaAttention<T>::check(const View<T, 3>& y, View<const T, 3> x, const KvCache<T>* cache) const {
  check_projections(in_forward);
  detail::require(x.dimension(2) == config_->hidden_size, in_forward, "input [B,S,E], expected a last dimension of ",
                  config_->hidden_size, ", got ", detail::as_shape(x.shape()));
  detail::require_shape(in_forward, "output [B,S,E]", y, x.shape());
  const std::array<Index, 3> inner{x.dimension(0), x.dimension(1), query_size()};
  detail::checked_size<T>(in_forward, "queries [B,S,H*D]", detail::as_shape(inner));
  const View<T, 3> packed(nullptr, inner);
  query_.check(packed, x);
  out_proj_.check(y, View<const T, 3>(packed));
  projection_dropout_.check(y, View<const T, 3>(y));
  if (cache != nullptr) check_cache(in_forward, x.dimension(0), x.dimension(1), *cache);
  const detail::AttentionSizes sizes = attention_sizes(x, cache);
  detail::require(detail::fits_positions(sizes) && sizes.D <= detail::most_indices, in_forward,
                  "expected at most 2^30 queries, keys and heads, got x ", detail::as_shape(x.shape()), ", keys ",
                  sizes.T);
}

template <Scalar T>
LlamaIntermediates<T> LlamaAttention<T>::lay_out(detail::Scratch& memory, Index B, Index S) const {
  const auto tokens = [&](Index size) { return View<T, 3>(memory.take<T>(B * S * size), {B, S, size}); };
  const auto sequences = [&](Index n) { return std::span(memory.take<Index>(n), static_cast<std::size_t>(n)); };
  return {.q = tokens(query_size()),
          .k = tokens(key_size()),
          .v = tokens(key_size()),
          .context = tokens(query_size()),
          .start = sequences(B),
          .lengths = sequences(B),
          .unpadded = sequences(rotary_ && S > rotary_->same_up_to() ? B : 0)};
}

template <Scalar T>
LlamaIntermediates<T> LlamaAttention<T>::begin(const Workspace::Frame& frame, Index B, Index S,
                                               const KvCache<T>* cache) const {
  detail::Scratch measured;
  lay_out(measured, B, S);
  detail::Scratch memory(frame.take<std::byte>(measured.size()));
  const Intermediates call = lay_out(memory, B, S);
  set_lengths(call, S, cache);
  return call;
}

template <Scalar T>
void LlamaAttention<T>::project(Intermediates& call, View<const T, 3> x) const {
  multiply(query_, call.q, x);
  multiply(key_, call.k, x);
  if (!value_.shares_with(key_)) {
    multiply(value_, call.v, x);
  } else if (rotary_) {
    std::copy_n(call.k.data(), call.k.size(), call.v.data());
  } else {
    call.v = call.k;
  }
}

template <Scalar T>
void LlamaAttention<T>::rotate(const Intermediates& call) const {
  if (rotary_ == nullptr) return;
  const View<T, 4> q = split_heads(call.q, config_->num_attention_heads);
  const View<T, 4> k = split_heads(call.k, config_->num_key_value_heads);
  rotary_->apply(q, k, call.start, call.unpadded);
}

template <Scalar T>
void LlamaAttention<T>::append(Intermediates& call, KvCache<T>* cache) const {
  const Index G = config_->num_key_value_heads;
  call.keys = split_heads(call.k, G), call.values = split_heads(call.v, G);
  if (cache == nullptr) return;
  cache->write(call.keys, call.values);
}

template <Scalar T>
AttentionOptions LlamaAttention<T>::attention_options(const Intermediates& call) const {
  const DropoutRule& dropout = call.attention_dropout;
  AttentionOptions options;
  options.query_start = call.start;
  if (dropout.active())
    options.dropout = attention_dropout_.p(), options.seed = dropout.seed, options.call = dropout.call;
  return options;
}

template <Scalar T>
void LlamaAttention<T>::attend(const Intermediates& call, const detail::AttentionSizes& sizes, const BoundMask& mask,
                               const KvCache<T>* cache, View<T, 4> weights) const {
  const AttentionOptions options = attention_options(call);
  const AttentionOutputs<T> out{split_heads(call.context, sizes.H), call.log_sum_exp, weights};
  const auto keys = cache != nullptr ? cache->stored_keys(mask.isa) : detail::stored_heads(call.keys, mask.isa);
  const auto values = cache != nullptr ? cache->stored_values(mask.isa) : detail::stored_heads(call.values, mask.isa);
  detail::run_checked<T>(sizes, out, split_heads(call.q, sizes.H), keys, values, mask.isa, mask.rules, options);
}

template <Scalar T>
void LlamaAttention<T>::output(const View<T, 3>& y, Intermediates& call) const {
  multiply(out_proj_, y, call.context);
  projection_dropout_.forward_into(y, View<const T, 3>(y), call.projection_dropout);
}

template <Scalar T>
void LlamaAttention<T>::run_steps(const View<T, 3>& y, View<const T, 3> x, Intermediates& call, const BoundMask& mask,
                                  KvCache<T>* cache, View<T, 4> weights) const {
  const detail::AttentionSizes sizes = attention_sizes(x, cache);
  call.attention_dropout = attention_dropout_.next_rule();
  try {
    project(call, x);
    rotate(call);
    append(call, cache);
    attend(call, sizes, mask, cache, weights);
    output(y, call);
  } catch (...) {
    attention_dropout_.give_back(call.attention_dropout);
    throw;
  }
  if (cache != nullptr) cache->commit(x.dimension(1));  // cannot fail
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
template <class M>
void LlamaAttention<T>::run(const View<T, 3>& y, View<const T, 3> x, const M& given, KvCache<T>* cache,
                            View<T, 4> weights) const {
  const auto mask = as_mask(given);
  check(y, x, cache);
  const Index B = x.dimension(0), S = x.dimension(1);
  if constexpr (detail::HasCheck<decltype(mask)>)
    mask.check(in_forward, B, config_->num_attention_heads, S, S + (cache != nullptr ? cache->max_length() : 0));
  const Workspace::Frame frame;
  Intermediates call = begin(frame, B, S, cache);
  const auto joined = join(mask, call, S, cache != nullptr ? Padding(call.lengths) : Padding());
  const Isa isa = active_isa();
  run_steps(y, x, call, {isa, kernel::rules_of<Accumulator<T>>(isa, joined, NoScore())}, cache, weights);
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
