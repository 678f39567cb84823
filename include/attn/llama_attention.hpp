// Floor 5. The document's module: projections, heads, attention, output projection, dropout.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "attention.hpp"
#include "dropout.hpp"
#include "kv_cache.hpp"
#include "linear.hpp"
#include "rotary.hpp"

namespace attn::inline ATTN_EIGEN_ABI {

/// What a LlamaAttention is made of. The defaults are the document's module.
struct LlamaAttentionConfig {
  Index hidden_size = 0;                    ///< E
  Index num_attention_heads = 0;            ///< H
  Index num_key_value_heads = 0;            ///< G; 0: H, multi-head; 1: multi-query; between: grouped-query
  Index head_dim = 0;                       ///< D; 0: E / H, which must then divide
  bool bias = true;                         ///< biases of the four projections
  double attention_dropout = 0.1;           ///< of the attention weights
  double projection_dropout = 0.1;          ///< of the output
  std::optional<RotaryConfig> rotary = {};  ///< turn queries and keys by position
  std::optional<Index> window = {};         ///< a query sees this many keys, itself included, in every call
  std::uint64_t seed = 0;                   ///< of initial weights and dropout
};

/// A cache, or none: what `forward` takes as its last argument.
template <Scalar T>
class CacheRef {
 public:
  CacheRef() = default;
  CacheRef(KvCache<T>& cache) : cache_(&cache) {}  // NOLINT: caches and pointers convert
  CacheRef(KvCache<T>* cache) : cache_(cache) {}   // NOLINT
  [[nodiscard]] KvCache<T>* get() const { return cache_; }

 private:
  KvCache<T>* cache_ = nullptr;
};

/// Output and attention weights, where both were asked for.
template <Scalar T>
struct LlamaAttentionResult {
  Tensor<T, 3> output;   ///< [B,S,E]
  Tensor<T, 4> weights;  ///< [B,H,S,T], after dropout
};

/// Multi-head self-attention as the document describes it: y = dropout(out_proj(merge(dropout(softmax(q kT / sqrt(D) +
/// mask)) v))) with q, k, v the heads of query(x), key(x), value(x).
///
/// Shapes: x [B,S,E] -> y [B,S,E]; T, the number of keys, is S, or with a cache all tokens so far.
/// mask: an additive tensor of rank 2, 3 or 4 that broadcasts to [B,H,S,T] as in PyTorch, or a typed mask, masks joined
/// by &, a callable bool(Position).
/// A new module is in training mode (dropout acts), as in PyTorch. `forward` is const and may be called from several
/// threads at once. A copy is independent of the original; what shared parameters within it still does.
template <Scalar T>
class LlamaAttention {
 public:
  /// The document's constructor.
  /// Errors: as the other.
  LlamaAttention(Index hidden_size, Index num_attention_heads, double dropout = 0.1)
      : LlamaAttention(LlamaAttentionConfig{.hidden_size = hidden_size,
                                            .num_attention_heads = num_attention_heads,
                                            .attention_dropout = dropout,
                                            .projection_dropout = dropout}) {}

  /// Errors: sizes below 1, E not divisible by H where head_dim is not given, H not divisible by G, dropout outside
  /// [0,1], an odd head size with rotary, a window below 1.
  explicit LlamaAttention(const LlamaAttentionConfig& config)
      : config_(complete(config)),
        query_(config_.hidden_size, config_.num_attention_heads * config_.head_dim, config_.bias, weight_seed(0)),
        key_(config_.hidden_size, config_.num_key_value_heads * config_.head_dim, config_.bias, weight_seed(1)),
        value_(config_.hidden_size, config_.num_key_value_heads * config_.head_dim, config_.bias, weight_seed(2)),
        out_proj_(config_.num_attention_heads * config_.head_dim, config_.hidden_size, config_.bias, weight_seed(3)),
        attention_dropout_(config_.attention_dropout, weight_seed(4)),
        projection_dropout_(config_.projection_dropout, weight_seed(5)) {
    if (config_.rotary) rotary_.emplace(config_.head_dim, *config_.rotary);
  }

  LlamaAttention(const LlamaAttention& other)
      : config_(other.config_),
        query_(other.query_),
        key_(other.key_),
        value_(other.value_),
        out_proj_(other.out_proj_),
        attention_dropout_(other.attention_dropout_),
        projection_dropout_(other.projection_dropout_),
        rotary_(other.rotary_) {
    const auto own = projections();
    const auto theirs = other.projections();
    for (std::size_t i = 0; i < own.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (theirs[i]->shares_with(*theirs[j])) own[i]->share(*own[j]);
  }
  LlamaAttention(LlamaAttention&&) = default;
  LlamaAttention& operator=(const LlamaAttention& other) { return *this = LlamaAttention(other); }
  LlamaAttention& operator=(LlamaAttention&&) = default;
  ~LlamaAttention() = default;

  /// The configuration, defaults filled in.
  [[nodiscard]] const LlamaAttentionConfig& config() const { return config_; }

  /// The projections; `attention.value().share(attention.key())` ties two, and the product is then computed once.
  [[nodiscard]] Linear<T>& query() { return query_; }
  [[nodiscard]] Linear<T>& key() { return key_; }
  [[nodiscard]] Linear<T>& value() { return value_; }
  [[nodiscard]] Linear<T>& out_proj() { return out_proj_; }
  [[nodiscard]] const Linear<T>& query() const { return query_; }
  [[nodiscard]] const Linear<T>& key() const { return key_; }
  [[nodiscard]] const Linear<T>& value() const { return value_; }
  [[nodiscard]] const Linear<T>& out_proj() const { return out_proj_; }

  /// Holds the other's parameters from now on: a change in one shows in both. Errors: sizes that differ.
  void share(const LlamaAttention& other) {
    detail::require(sizes() == other.sizes(), "LlamaAttention::share",
                    "modules of unlike make, expected [E,H,G,D,bias] = ", detail::as_shape(sizes()), ", got ",
                    detail::as_shape(other.sizes()));
    query_.share(other.query_);
    key_.share(other.key_);
    value_.share(other.value_);
    out_proj_.share(other.out_proj_);
  }

  void train(bool on = true) {
    attention_dropout_.train(on);
    projection_dropout_.train(on);
  }
  void eval() { train(false); }
  [[nodiscard]] bool is_training() const { return attention_dropout_.is_training(); }

  /// A cache that fits this module.
  [[nodiscard]] KvCache<T> make_cache(Index batch, Index capacity) const {
    return KvCache<T>(batch, config_.num_key_value_heads, capacity, config_.head_dim);
  }

  /// y [B,S,E] of x [B,S,E].
  ///
  /// With a cache, x holds the S tokens that follow those it has, and they are appended. A query sees all that came before
  /// it and, unless a mask says otherwise, all of x: pass Causal for a decoder.
  /// Errors: another last dimension; a mask that does not broadcast; a cache that does not fit or has too little room
  /// left, which is then as it was.
  template <class M = NoMask>
  [[nodiscard]] Tensor<T, 3> forward(View<const T, 3> x, const M& mask = {}, CacheRef<T> cache = {}) const {
    auto y = detail::make_tensor<T, 3>(x.shape());
    run(y, x, mask, cache.get(), {});
    return y;
  }

  /// The same, written into a tensor [B,S,E] of the caller's that does not overlap x.
  /// Errors: besides, another output shape.
  template <class M = NoMask>
  void forward_into(View<T, 3> y, View<const T, 3> x, const M& mask = {}, CacheRef<T> cache = {}) const {
    run(y, x, mask, cache.get(), {});
  }

  /// The output and the attention weights [B,H,S,T]. It costs the memory of the weights.
  template <class M = NoMask>
  [[nodiscard]] LlamaAttentionResult<T> forward_with_weights(View<const T, 3> x, const M& mask = {},
                                                             CacheRef<T> cache = {}) const {
    const Index keys = x.dimension(1) + (cache.get() != nullptr ? cache.get()->max_length() : 0);
    LlamaAttentionResult<T> result{
        detail::make_tensor<T, 3>(x.shape()),
        detail::make_tensor<T, 4>({x.dimension(0), config_.num_attention_heads, x.dimension(1), keys})};
    run(result.output, x, mask, cache.get(), View<T, 4>(result.weights));
    return result;
  }

  template <class... Args>
  [[nodiscard]] Tensor<T, 3> operator()(View<const T, 3> x, Args&&... args) const {
    return forward(x, std::forward<Args>(args)...);
  }

 private:
  std::array<Linear<T>*, 4> projections() { return {&query_, &key_, &value_, &out_proj_}; }
  std::array<const Linear<T>*, 4> projections() const { return {&query_, &key_, &value_, &out_proj_}; }

  // Checks, and fills in the defaults. One copy: each way to copy or move a configuration is dozens of functions.
  static LlamaAttentionConfig complete(const LlamaAttentionConfig& given) {
    LlamaAttentionConfig c = given;
    constexpr auto fn = "LlamaAttention";
    detail::require(c.hidden_size >= 1, fn, "hidden_size, expected at least 1, got ", c.hidden_size);
    detail::require(c.num_attention_heads >= 1, fn, "num_attention_heads, expected at least 1, got ",
                    c.num_attention_heads);
    if (c.num_key_value_heads == 0) c.num_key_value_heads = c.num_attention_heads;
    detail::require(c.num_key_value_heads >= 1 && c.num_attention_heads % c.num_key_value_heads == 0, fn,
                    "num_attention_heads, expected a multiple of num_key_value_heads = ", c.num_key_value_heads,
                    ", got ", c.num_attention_heads);
    if (c.head_dim == 0) {
      detail::require(c.hidden_size % c.num_attention_heads == 0, fn,
                      "hidden_size, expected a multiple of num_attention_heads = ", c.num_attention_heads, ", got ",
                      c.hidden_size);
      c.head_dim = c.hidden_size / c.num_attention_heads;
    }
    detail::require(c.head_dim >= 1, fn, "head_dim, expected at least 1, got ", c.head_dim);
    for (const double p : {c.attention_dropout, c.projection_dropout})
      detail::require(p >= 0.0 && p <= 1.0, fn, "dropout, expected a probability in [0,1], got ", p);
    detail::require(!c.window || *c.window >= 1, fn, "window, expected at least 1, got ", c.window.value_or(0));
    detail::require(!c.rotary || c.head_dim % 2 == 0, fn, "head_dim, expected an even number with rotary, got ",
                    c.head_dim);
    return c;
  }
  [[nodiscard]] std::uint64_t weight_seed(std::uint64_t part) const { return config_.seed * 8 + part; }
  [[nodiscard]] std::array<Index, 5> sizes() const {
    return {config_.hidden_size, config_.num_attention_heads, config_.num_key_value_heads, config_.head_dim,
            config_.bias ? 1 : 0};
  }

  template <class M>
  void run(const View<T, 3>& y, View<const T, 3> x, const M& mask, KvCache<T>* cache, View<T, 4> weights) const {
    constexpr auto fn = "LlamaAttention::forward";
    const auto& c = config_;
    const Index B = x.dimension(0), S = x.dimension(1), E = c.hidden_size;
    const Index H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_dim;

    // 1. Checks, before any work.
    detail::require(x.dimension(2) == E, fn, "input [B,S,E], expected a last dimension of ", E, ", got ",
                    detail::as_shape(x.shape()));
    detail::require_shape(fn, "output [B,S,E]", y, x.shape());
    if (cache != nullptr) {
      const std::array<Index, 4> expected{B, G, D, D};
      const std::array<Index, 4> got{cache->batch(), cache->key_value_heads(), cache->head_size(), cache->value_size()};
      detail::require(detail::same_shape(detail::as_shape(got), detail::as_shape(expected)), fn,
                      "cache [batch, key/value heads, head size, value size], expected ", detail::as_shape(expected),
                      ", got ", detail::as_shape(got));
      cache->check_room(S);
    }
    Workspace::Frame frame;
    const Index past = cache != nullptr ? cache->max_length() : 0;
    const std::span<Index> start(frame.take<Index>(B), static_cast<std::size_t>(B));
    for (Index b = 0; b < B; ++b) start[static_cast<std::size_t>(b)] = cache != nullptr ? cache->length(b) : 0;
    const auto given = as_mask(mask);
    if constexpr (HasCheck<decltype(given)>) given.check(fn, B, H, S, past + S);

    // 2. Projections [B,S,H*D], heads split by strides. Where key and value share parameters, one product serves both.
    const View<T, 3> q(frame.take<T>(B * S * H * D), {B, S, H * D});
    const View<T, 3> k(frame.take<T>(B * S * G * D), {B, S, G * D});
    const bool tied = value_.shares_with(key_);
    const View<T, 3> v = tied && !rotary_ ? k : View<T, 3>(frame.take<T>(B * S * G * D), {B, S, G * D});
    query_.forward_into(q, x);
    key_.forward_into(k, x);
    if (!tied) {
      value_.forward_into(v, x);
    } else if (rotary_) {
      std::copy_n(k.data(), k.size(), v.data());
    }
    const View<T, 4> q_heads = split_heads(q, H), k_heads = split_heads(k, G), v_heads = split_heads(v, G);

    // 3. Rotary positions.
    if (rotary_) {
      rotary_->apply(q_heads, start, past + S);
      rotary_->apply(k_heads, start, past + S);
    }

    // 4. Attention, over the cache where there is one. What follows the append must not fail half-way.
    const View<T, 3> context(frame.take<T>(B * S * H * D), {B, S, H * D});
    AttentionOptions options;
    options.query_start = start;
    const DropoutRule rule = attention_dropout_.next_rule();
    if (rule.active()) {
      options.dropout = attention_dropout_.p();
      options.seed = rule.seed;
      options.call = rule.call;
    }
    const AttentionOutputs<T> out{split_heads(context, H), {}, weights};
    const SlidingWindow window = c.window ? SlidingWindow(*c.window) : SlidingWindow::unlimited();
    View<const T, 4> keys = k_heads, values = v_heads;
    Padding padding;
    if (cache != nullptr) {
      cache->append(k_heads, v_heads);
      keys = cache->keys(), values = cache->values();
      padding = Padding(cache->lengths());
    }
    try {
      scaled_dot_product_attention_into(out, q_heads, keys, values, given & window & padding, NoScore(), options);
    } catch (...) {
      if (cache != nullptr) cache->roll_back(S);
      throw;
    }

    // 5. Output projection and its dropout.
    out_proj_.forward_into(y, View<const T, 3>(context));
    projection_dropout_.forward_into(y, View<const T, 3>(y));
  }

  LlamaAttentionConfig config_;
  Linear<T> query_, key_, value_, out_proj_;
  Dropout<T> attention_dropout_, projection_dropout_;
  std::optional<Rotary> rotary_;
};

}  // namespace attn::inline ATTN_EIGEN_ABI
