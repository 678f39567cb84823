// Floor 5. The document's module: projections, heads, attention, output projection, dropout.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "attention.hpp"
#include "dropout.hpp"
#include "kv_cache.hpp"
#include "linear.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "philox.hpp"
#include "rotary.hpp"
#include "sequence_length.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

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
  /// Of initial weights and dropout; where not set, each module has one of its own, as in PyTorch.
  std::optional<std::uint64_t> seed = {};
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
/// threads at once; a call that fails changes nothing but, where work had begun, the output. A copy is independent of
/// the original; what shared parameters within it still does. A copy of a module whose seed was not set drops elements of
/// its own. A module that was moved from has size 0 and refuses to run.
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

  /// Errors: sizes below 1 or that memory cannot hold, E not divisible by H where head_dim is not given, H not divisible
  /// by G, dropout outside [0,1], an odd head size with rotary, a window below 1.
  [[gnu::cold]] explicit LlamaAttention(const LlamaAttentionConfig& config)
      : config_(complete(config)),
        rotary_(make_rotary(*config_)),
        query_(config_->hidden_size, query_size(), config_->bias, part_seed(0)),
        key_(config_->hidden_size, key_size(), config_->bias, part_seed(1)),
        value_(config_->hidden_size, key_size(), config_->bias, part_seed(2)),
        out_proj_(query_size(), config_->hidden_size, config_->bias, part_seed(3)),
        attention_dropout_(config_->attention_dropout, part_seed(4)),
        projection_dropout_(config_->projection_dropout, part_seed(5)) {}

  LlamaAttention(const LlamaAttention& other)
      : config_(other.config_),
        rotary_(other.rotary_),
        query_(other.query_),
        key_(other.key_),
        value_(other.value_),
        out_proj_(other.out_proj_),
        attention_dropout_(other.attention_dropout_),
        projection_dropout_(other.projection_dropout_) {
    const auto own = projections();
    const auto theirs = other.projections();
    for (std::size_t i = 0; i < own.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (theirs[i]->shares_with(*theirs[j])) own[i]->share(*own[j]);
  }
  LlamaAttention(LlamaAttention&&) noexcept = default;
  LlamaAttention& operator=(const LlamaAttention& other) {
    return this == &other ? *this : *this = LlamaAttention(other);
  }
  LlamaAttention& operator=(LlamaAttention&&) noexcept = default;
  ~LlamaAttention() = default;

  /// The configuration, defaults filled in but for the seed.
  [[nodiscard]] const LlamaAttentionConfig& config() const { return *config_; }

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
    constexpr auto fn = "LlamaAttention::share";
    detail::require(sizes() == other.sizes(), fn,
                    "modules of unlike make, expected [E,H,G,D,bias] = ", detail::as_shape(sizes()), ", got ",
                    detail::as_shape(other.sizes()));
    check_projections(fn);
    other.check_projections(fn);
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
    return KvCache<T>(batch, config_->num_key_value_heads, capacity, config_->head_dim);
  }

  /// y [B,S,E] of x [B,S,E].
  ///
  /// With a cache, x holds the S tokens that follow those it has, and they are appended. A query sees all that came before
  /// it and, unless a mask says otherwise, all of x: pass Causal for a decoder.
  /// With dynamic or longrope rotary scaling and no cache, a sequence ends where the mask lets no query see what follows.
  /// Errors: another last dimension; a mask that does not broadcast; a projection replaced by one of another size; a cache
  /// that does not fit, has too little room left, or is too long for a rotary scaling that depends on the length.
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
    const std::array<Index, 4> shape{x.dimension(0), config_->num_attention_heads, x.dimension(1), keys};
    detail::checked_size<T>("LlamaAttention::forward_with_weights", "weights [B,H,S,T]", detail::as_shape(shape));
    LlamaAttentionResult<T> result{detail::make_tensor<T, 3>(x.shape()), detail::make_tensor<T, 4>(shape)};
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
  [[gnu::cold]] static LlamaAttentionConfig complete(const LlamaAttentionConfig& given) {
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
    const std::array<Index, 3> sizes{c.num_attention_heads, c.head_dim, c.hidden_size};
    detail::checked_size<T>(fn, "num_attention_heads, head_dim, hidden_size", detail::as_shape(sizes));
    for (const double p : {c.attention_dropout, c.projection_dropout})
      detail::require(detail::is_probability(p), fn, "dropout, expected a probability in [0,1], got ", p);
    detail::require(!c.window || *c.window >= 1, fn, "window, expected at least 1, got ", c.window.value_or(0));
    detail::require(!c.rotary || c.head_dim % 2 == 0, fn, "head_dim, expected an even number with rotary, got ",
                    c.head_dim);
    return c;
  }
  static std::optional<Rotary> make_rotary(const LlamaAttentionConfig& c) {
    return c.rotary ? std::optional<Rotary>(std::in_place, c.head_dim, *c.rotary) : std::nullopt;
  }
  /// Seeds of the parts, all unlike; where none is given, each part draws its own.
  [[nodiscard]] std::optional<std::uint64_t> part_seed(std::uint64_t part) const {
    return config_->seed ? std::optional(splitmix64(splitmix64(*config_->seed) + part)) : std::nullopt;
  }
  [[nodiscard]] Index query_size() const { return config_->num_attention_heads * config_->head_dim; }
  [[nodiscard]] Index key_size() const { return config_->num_key_value_heads * config_->head_dim; }
  [[nodiscard]] std::array<Index, 5> sizes() const {
    return {config_->hidden_size, config_->num_attention_heads, config_->num_key_value_heads, config_->head_dim,
            config_->bias ? 1 : 0};
  }

  // ---- Checks, before any work ----

  /// The caller may have put other layers in the place of the projections.
  void check_projections(std::string_view fn) const {
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
  void check_cache(std::string_view fn, Index B, Index S, const KvCache<T>& cache) const {
    const Index G = config_->num_key_value_heads, D = config_->head_dim;
    const std::array<Index, 4> expected{B, G, D, D};
    const std::array<Index, 4> got{cache.batch(), cache.key_value_heads(), cache.head_size(), cache.value_size()};
    detail::require(got == expected, fn, "cache [batch, key/value heads, head size, value size], expected ",
                    detail::as_shape(expected), ", got ", detail::as_shape(got));
    detail::require(
        !rotary_ || cache.capacity() <= rotary_->same_up_to(), fn,
        "cache, expected RotaryConfig::length to be set (cached keys do not follow the length) or a capacity "
        "of at most original_length = ",
        rotary_ ? rotary_->same_up_to() : 0, ", got ", cache.capacity());
    cache.check_room(S);
  }
  template <Mask M>
  void check(const View<T, 3>& y, View<const T, 3> x, const M& mask, const KvCache<T>* cache) const {
    constexpr auto fn = "LlamaAttention::forward";
    const Index B = x.dimension(0), S = x.dimension(1), past = cache != nullptr ? cache->max_length() : 0;
    check_projections(fn);
    detail::require(x.dimension(2) == config_->hidden_size, fn, "input [B,S,E], expected a last dimension of ",
                    config_->hidden_size, ", got ", detail::as_shape(x.shape()));
    detail::require_shape(fn, "output [B,S,E]", y, x.shape());
    const std::array<Index, 3> inner{B, S, query_size()};
    detail::checked_size<T>(fn, "queries [B,S,H*D]", detail::as_shape(inner));
    const View<T, 3> packed(nullptr, inner);
    query_.check(packed, x);
    out_proj_.check(y, packed);
    projection_dropout_.check(y, y);
    if (cache != nullptr) check_cache(fn, B, S, *cache);
    if constexpr (HasCheck<M>) mask.check(fn, B, config_->num_attention_heads, S, past + S);
  }

  // ---- Steps ----

  /// Memory of one call: projections [B,S,H*D], [B,S,G*D], and what attention makes of them.
  struct Call {
    View<T, 3> q, k, v, context;
    std::span<Index> start, lengths;  // of each sequence: before the call, and with it
  };
  Call begin(const Workspace::Frame& frame, Index B, Index S, const KvCache<T>* cache) const {
    const auto take = [&](Index size) { return View<T, 3>(frame.take<T>(B * S * size), {B, S, size}); };
    const auto take_lengths = [&] { return std::span<Index>(frame.take<Index>(B), static_cast<std::size_t>(B)); };
    Call call{take(query_size()), take(key_size()), {}, take(query_size()), take_lengths(), take_lengths()};
    call.v = value_.shares_with(key_) && !rotary_ ? call.k : take(key_size());
    for (Index b = 0; b < B; ++b) {
      const auto i = static_cast<std::size_t>(b);
      call.start[i] = cache != nullptr ? cache->length(b) : 0;
      call.lengths[i] = call.start[i] + S;
    }
    return call;
  }

  /// Where key and value share parameters, one product serves both.
  void project(const Call& call, View<const T, 3> x) const {
    query_.forward_into(call.q, x);
    key_.forward_into(call.k, x);
    if (!value_.shares_with(key_)) {
      value_.forward_into(call.v, x);
    } else if (call.v.data() != call.k.data()) {
      std::copy_n(call.k.data(), call.k.size(), call.v.data());
    }
  }

  /// Turns queries and keys, heads split by strides. Only some scalings ask how long each sequence is.
  template <Mask M>
  void rotate(const Call& call, const M& mask, const Workspace::Frame& frame) const {
    const Index B = call.q.dimension(0), S = call.q.dimension(1), H = config_->num_attention_heads;
    std::span<Index> own;  // lengths without padding; a cache that is long enough for them to matter was refused
    if (S > rotary_->same_up_to()) {
      own = {frame.take<Index>(B), static_cast<std::size_t>(B)};
      for (Index b = 0; b < B; ++b)
        own[static_cast<std::size_t>(b)] = detail::length_seen<Accumulator<T>>(mask, b, H, S);
    }
    rotary_->apply(split_heads(call.q, H), call.start, own);
    rotary_->apply(split_heads(call.k, config_->num_key_value_heads), call.start, own);
  }

  /// Attention over these keys, or over the cache with them behind its own.
  template <Mask M>
  void attend(const Call& call, const M& mask, const DropoutRule& rule, KvCache<T>* cache, View<T, 4> weights) const {
    const Index S = call.q.dimension(1), H = config_->num_attention_heads, G = config_->num_key_value_heads;
    View<const T, 4> keys = split_heads(call.k, G), values = split_heads(call.v, G);
    Padding padding;
    if (cache != nullptr) {
      cache->write(keys, values);
      keys = cache->keys(S), values = cache->values(S);
      padding = Padding(call.lengths);
    }
    AttentionOptions options;
    options.query_start = call.start;
    if (rule.active()) options.dropout = attention_dropout_.p(), options.seed = rule.seed, options.call = rule.call;
    const SlidingWindow window = config_->window ? SlidingWindow(*config_->window) : SlidingWindow::unlimited();
    const AttentionOutputs<T> out{split_heads(call.context, H), {}, weights};
    scaled_dot_product_attention_into(out, split_heads(call.q, H), keys, values, mask & window & padding, NoScore(),
                                      options);
  }

  template <class M>
  void run(const View<T, 3>& y, View<const T, 3> x, const M& mask, KvCache<T>* cache, View<T, 4> weights) const {
    const auto given = as_mask(mask);
    check(y, x, given, cache);
    const Workspace::Frame frame;
    const Call call = begin(frame, x.dimension(0), x.dimension(1), cache);
    const DropoutRule rule = attention_dropout_.next_rule();
    try {
      project(call, x);
      if (rotary_) rotate(call, given, frame);
      attend(call, given, rule, cache, weights);
      out_proj_.forward_into(y, View<const T, 3>(call.context));
      projection_dropout_.forward_into(y, View<const T, 3>(y));
    } catch (...) {
      attention_dropout_.give_back(rule);
      throw;
    }
    if (cache != nullptr) cache->commit(x.dimension(1));  // cannot fail
  }

  detail::EmptyWhenMoved<LlamaAttentionConfig> config_;
  std::optional<Rotary> rotary_;
  Linear<T> query_, key_, value_, out_proj_;
  Dropout<T> attention_dropout_, projection_dropout_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
