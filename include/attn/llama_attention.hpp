// Floor 5. Multi-head self-attention as a module: projections, heads, attention, output projection, dropout.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "dropout.hpp"
#include "forward_options.hpp"
#include "kv_cache.hpp"
#include "linear.hpp"
#include "llama_activations.hpp"
#include "llama_attention_config.hpp"
#include "llama_parts.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parameter.hpp"
#include "philox.hpp"
#include "rms_norm.hpp"
#include "rotary.hpp"
#include "score.hpp"
#include "scratch.hpp"
#include "sequence_length.hpp"
#include "tensor_argument.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// What LlamaAttention::forward_with_weights returns.
template <Scalar T>
struct LlamaAttentionResult {
  Tensor<T, 3> output;   ///< [B,S,E]
  Tensor<T, 4> weights;  ///< [B,H,S,T], after dropout
};

/// Multi-head attention: y = dropout(out_proj(merge(dropout(softmax(q kT / sqrt(D) + mask)) v))), where q, k and v
/// are the heads of query(x), key(x) and value(x). LlamaAttentionConfig adds what models have besides: norms of queries and
/// keys, rotary, a window, a cap on scores, sinks, gates, keys and values of another sequence.
///
/// Shapes: x [B,S,E] -> y [B,S,E]. T, the number of keys, is S; with a cache, all tokens so far; of cross-attention, the
/// length of the context.
/// mask: an additive tensor of rank 1 to 4 that broadcasts to [B,H,S,T] as in PyTorch, a typed mask, masks joined by &,
/// or a callable bool(Position).
/// Conventions: a new module is in training mode (dropout acts), as in PyTorch. `forward` is const and may be called
/// from several threads at once. A call that fails changes nothing, except the output where work had begun.
/// A copy is independent of the original: projections that share parameters share them in the copy too, but not with the
/// original. The copy of a module without a seed draws its own dropout. A module that was moved from has size 0 and
/// refuses to run.
/// Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.2.
template <Scalar T>
class LlamaAttention {
 public:
  /// Hidden size E, H heads, one probability for both dropouts; all else as LlamaAttentionConfig's defaults.
  /// Errors: as the other constructor.
  LlamaAttention(Index hidden_size, Index num_attention_heads, double dropout = 0.1)
      : LlamaAttention(LlamaAttentionConfig{.hidden_size = hidden_size,
                                            .num_attention_heads = num_attention_heads,
                                            .attention_dropout = dropout,
                                            .projection_dropout = dropout}) {}

  /// Errors: sizes below 1 or that memory cannot hold, E not divisible by H where head_dim is not given, H not divisible
  /// by G, dropout outside [0,1], an odd head size with rotary, a window or a longest sequence below 1, rotary or a window
  /// in cross-attention, a cap that is not positive, a scale or epsilon that is not finite.
  [[gnu::cold]] explicit LlamaAttention(const LlamaAttentionConfig& config)
      : config_(detail::complete<T>(config)),
        rotary_(config_->rotary.make(config_->head_dim)),
        query_(config_->hidden_size, sizes().projected, *config_->query_bias, part_seed(0)),
        key_(sizes().key_inputs, sizes().keys, *config_->key_bias, part_seed(1)),
        value_(sizes().key_inputs, sizes().values, *config_->value_bias, part_seed(2)),
        out_proj_(sizes().attended, config_->hidden_size, *config_->output_bias, part_seed(3)),
        query_norm_(detail::make_norm<T>(*config_, sizes().queries)),
        key_norm_(detail::make_norm<T>(*config_, sizes().keys)),
        sinks_(config_->sinks ? std::make_shared<Sinks>(config_->num_attention_heads) : nullptr),
        attention_dropout_(config_->attention_dropout, part_seed(4)),
        projection_dropout_(config_->projection_dropout, part_seed(5)) {}

  LlamaAttention(const LlamaAttention& other)
      : config_(other.config_),
        rotary_(other.rotary_),
        query_(other.query_),
        key_(other.key_),
        value_(other.value_),
        out_proj_(other.out_proj_),
        query_norm_(detail::copy_of(other.query_norm_)),
        key_norm_(detail::copy_of(other.key_norm_)),
        sinks_(detail::copy_of(other.sinks_)),
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
  [[gnu::cold]] ~LlamaAttention() = default;

  /// The configuration with its defaults filled in, except the seed.
  [[nodiscard]] const LlamaAttentionConfig& config() const { return *config_; }

  /// The projections. `attention.value().share(attention.key())` ties two, whose product is then computed once.
  [[nodiscard]] Linear<T>& query() { return query_; }
  [[nodiscard]] Linear<T>& key() { return key_; }
  [[nodiscard]] Linear<T>& value() { return value_; }
  [[nodiscard]] Linear<T>& out_proj() { return out_proj_; }
  [[nodiscard]] const Linear<T>& query() const { return query_; }
  [[nodiscard]] const Linear<T>& key() const { return key_; }
  [[nodiscard]] const Linear<T>& value() const { return value_; }
  [[nodiscard]] const Linear<T>& out_proj() const { return out_proj_; }

  /// The norms of queries and keys, whose weights a checkpoint sets. Errors: a module without them.
  [[nodiscard]] RmsNorm<T>& query_norm() { return detail::existing("LlamaAttention::query_norm", query_norm_); }
  [[nodiscard]] RmsNorm<T>& key_norm() { return detail::existing("LlamaAttention::key_norm", key_norm_); }
  [[nodiscard]] const RmsNorm<T>& query_norm() const {
    return detail::existing("LlamaAttention::query_norm", query_norm_);
  }
  [[nodiscard]] const RmsNorm<T>& key_norm() const { return detail::existing("LlamaAttention::key_norm", key_norm_); }

  /// The score of each head's sink, [H], 0 until it is set. Errors: a module without sinks; to set, also another shape, or
  /// numbers that are not finite.
  [[nodiscard]] Tensor<T, 1> sinks() const;
  void set_sinks(View<const T, 1> sinks);
  /// The gradient of the sinks, [H]. Errors: a module without sinks.
  [[nodiscard]] Tensor<Accumulator<T>, 1> sinks_gradient() const;

  /// Replaces the parameters by those of the other module: from then on a change in one shows in both.
  /// Errors: sizes or parts that differ.
  void share(const LlamaAttention& other) {
    constexpr auto fn = "LlamaAttention::share";
    detail::check_alike(fn, *config_, *other.config_);
    check_projections(fn);
    other.check_projections(fn);
    query_norm_ = other.query_norm_;
    key_norm_ = other.key_norm_;
    sinks_ = other.sinks_;
    query_.share(other.query_);
    key_.share(other.key_);
    value_.share(other.value_);
    out_proj_.share(other.out_proj_);
  }

  /// Stores the weights of all projections in a format from now on, as Linear::store_weights does.
  /// Errors: a format that does not exist, weights that it cannot hold. All weights are then as they were.
  void store_weights(WeightFormat format) {
    check_projections("LlamaAttention::store_weights");
    for (const Linear<T>* layer : std::as_const(*this).projections()) layer->check_store_weights(format);
    for (Linear<T>* layer : projections()) layer->store_weights(format);
  }

  void train(bool on = true) {
    attention_dropout_.train(on);
    projection_dropout_.train(on);
  }
  void eval() { train(false); }
  [[nodiscard]] bool is_training() const { return attention_dropout_.is_training(); }

  /// Where the dropouts of weights and of the output stand, to save and to restore.
  [[nodiscard]] std::array<DropoutState, 2> dropout_states() const {
    return {attention_dropout_.state(), projection_dropout_.state()};
  }
  void set_dropout_states(const std::array<DropoutState, 2>& states) {
    attention_dropout_.set_state(states[0]);
    projection_dropout_.set_state(states[1]);
  }

  /// A cache that fits this module. Errors: as KvCache's constructors.
  [[nodiscard]] KvCache<T> make_cache(Index batch, Index capacity) const {
    return KvCache<T>(batch, config_->num_key_value_heads, capacity, config_->head_dim, config_->value_head_dim);
  }
  /// The same with keys and values in a format, or each in one of its own: half or a quarter of the bytes are then read.
  [[nodiscard]] KvCache<T> make_cache(Index batch, Index capacity, CacheFormat format) const {
    return make_cache(batch, capacity, format, format);
  }
  [[nodiscard]] KvCache<T> make_cache(Index batch, Index capacity, CacheFormat keys, CacheFormat values) const {
    return KvCache<T>(batch, config_->num_key_value_heads, capacity, config_->head_dim, config_->value_head_dim, keys,
                      values);
  }
  /// The same with pages or a window. `.window = config().window` keeps no more tokens than the module looks at.
  [[nodiscard]] KvCache<T> make_cache(Index batch, Index capacity, const KvCacheOptions& options) const {
    return KvCache<T>(batch, config_->num_key_value_heads, capacity, config_->head_dim, config_->value_head_dim,
                      options);
  }
  /// Keys and values of a context [B,K,C] for cross-attention, computed once: forward then takes them as its cache, to which
  /// it appends nothing. Errors: a module without context_size; another last dimension.
  template <detail::TensorArgument<3, T> C = View<const T, 3>>
  [[nodiscard]] KvCache<T> make_context(const C& context) const {
    return project_context(detail::view_of_argument<T, 3>(context));
  }
  /// Drops `count` tokens of a sequence from token `first` on, so that those behind them stand as many positions earlier:
  /// their keys are turned to where they now are. See KvCache::erase.
  /// Errors: a cache that does not fit; as KvCache::erase.
  void erase(KvCache<T>& cache, Index sequence, Index first, Index count) const {
    constexpr auto fn = "LlamaAttention::erase";
    detail::require(!is_cross(), fn, "module, expected self-attention, whose cache forward appends to");
    check_cache(fn, cache.batch(), 0, cache);
    if (rotary_ != nullptr)
      cache.erase(sequence, first, count, *rotary_);
    else
      cache.erase(sequence, first, count);
  }

  /// Computes y [B,S,E] of x [B,S,E].
  ///
  /// With a cache, x holds the S tokens that follow those in the cache, and they are appended. A query sees all earlier
  /// tokens and, unless a mask says otherwise, all of x: pass Causal for a decoder.
  /// With dynamic or longrope rotary scaling and no cache, the length of a sequence is what the mask lets its queries see.
  /// Errors: another last dimension; a mask that does not broadcast; a projection replaced by one of another size; a cache
  /// that does not fit, has too little room left, or is too long for a rotary scaling that depends on the length; a
  /// sequence longer than max_length; cross-attention without a context; more than 2^30 tokens.
  template <detail::TensorArgument<3, T> X = View<const T, 3>, MaskArgument M = NoMask>
  [[nodiscard]] Tensor<T, 3> forward(const X& input, const M& mask = {}, CacheRef<T> cache = {}) const {
    const auto x = detail::view_of_argument<T, 3>(input);
    auto y = detail::make_tensor<T, 3>(x.shape());
    run({.y = y, .x = x, .cache = cache.get()}, mask, NoScore());
    return y;
  }

  /// Computes the same into a tensor [B,S,E] of the caller's that does not overlap x.
  /// Errors: besides, another output shape.
  template <detail::TensorArgument<3, T> X = View<const T, 3>, MaskArgument M = NoMask>
  void forward_into(View<T, 3> y, const X& input, const M& mask = {}, CacheRef<T> cache = {}) const {
    run({.y = y, .x = detail::view_of_argument<T, 3>(input), .cache = cache.get()}, mask, NoScore());
  }

  /// Cross-attention: queries of x [B,S,E], keys and values of a context [B,K,C], C the config's context_size.
  /// Errors: as forward; a module without context_size.
  template <detail::TensorArgument<3, T> X, detail::TensorOfElement<T> C, class M>
  requires(C::NumDimensions == 3 && detail::is_mask_argument<M>)
      [[nodiscard]] Tensor<T, 3> forward(const X& x, const C& context, const M& mask) const {
    return forward(x, mask, ForwardOptions<T>{.context = View<const T, 3>(context)});
  }
  template <detail::TensorArgument<3, T> X, detail::TensorOfElement<T> C, class M>
  requires(C::NumDimensions == 3 && detail::is_mask_argument<M>) void forward_into(View<T, 3> y, const X& x,
                                                                                   const C& context,
                                                                                   const M& mask) const {
    forward_into(y, x, mask, ForwardOptions<T>{.context = View<const T, 3>(context)});
  }

  /// The same with more options: positions, a score function, a cache, activations, a context.
  /// Errors: as the other overloads; a cache together with activations; positions of another shape; a context together
  /// with a cache.
  template <detail::TensorArgument<3, T> X, MaskArgument M, ScoreArgument<Accumulator<T>> F>
  [[nodiscard]] Tensor<T, 3> forward(const X& input, const M& mask, const ForwardOptions<T, F>& options) const {
    const auto x = detail::view_of_argument<T, 3>(input);
    auto y = detail::make_tensor<T, 3>(x.shape());
    forward_into(y, x, mask, options);
    return y;
  }
  template <detail::TensorArgument<3, T> X, MaskArgument M, ScoreArgument<Accumulator<T>> F>
  void forward_into(View<T, 3> y, const X& input, const M& mask, const ForwardOptions<T, F>& options) const {
    const Arguments arguments{.y = y,
                              .x = detail::view_of_argument<T, 3>(input),
                              .context = options.context,
                              .cache = options.cache.get(),
                              .positions = options.positions};
    const auto& score = detail::as_score<Accumulator<T>>(options.score);
    if (options.activations == nullptr) return run(arguments, mask, score);
    detail::require(arguments.cache == nullptr, in_forward, both_kept);
    if constexpr (detail::HasDerivative<F, Accumulator<T>>)
      run_saving(arguments, mask, score, *options.activations);
    else  // whether a callable takes dual numbers cannot be asked without compiling it for them
      detail::require(false, in_forward,
                      "options, expected a score function with a member derivative(score, at) to keep activations for; "
                      "for others: forward(x, mask, options, saved)");
  }

  /// Computes the output and the attention weights [B,H,S,T], which take that much memory.
  /// Errors: besides, weights that memory cannot hold.
  template <detail::TensorArgument<3, T> X = View<const T, 3>, MaskArgument M = NoMask>
  [[nodiscard]] LlamaAttentionResult<T> forward_with_weights(const X& input, const M& mask = {},
                                                             CacheRef<T> cache = {}) const {
    const auto x = detail::view_of_argument<T, 3>(input);
    const Index keys = keys_of(x, {}, cache.get());
    const std::array<Index, 4> shape{x.dimension(0), config_->num_attention_heads, x.dimension(1), keys};
    detail::checked_size<T>("LlamaAttention::forward_with_weights", "weights [B,H,S,T]", detail::as_shape(shape));
    LlamaAttentionResult<T> result{detail::make_tensor<T, 3>(x.shape()), detail::make_tensor<T, 4>(shape)};
    run({.y = result.output, .x = x, .cache = cache.get(), .weights = View<T, 4>(result.weights)}, mask, NoScore());
    return result;
  }

  // ---- Training ----

  using Activations = LlamaActivations<T>;

  /// Computes y [B,S,E] of x [B,S,E] and keeps in `saved` what backward needs.
  /// Errors: as forward without a cache, and weights that are not stored in the module's own type; `saved` is empty
  /// afterwards.
  template <detail::TensorArgument<3, T> X, MaskArgument M>
  [[nodiscard]] Tensor<T, 3> forward(const X& input, const M& mask, Activations& saved) const {
    const auto x = detail::view_of_argument<T, 3>(input);
    auto y = detail::make_tensor<T, 3>(x.shape());
    run_saving({.y = y, .x = x}, mask, NoScore(), saved);
    return y;
  }
  template <detail::TensorArgument<3, T> X, MaskArgument M>
  void forward_into(View<T, 3> y, const X& input, const M& mask, Activations& saved) const {
    run_saving({.y = y, .x = detail::view_of_argument<T, 3>(input)}, mask, NoScore(), saved);
  }
  /// The same with options, whose score function is differentiated by dual numbers, so that a callable takes its score as
  /// `auto`; or by its member derivative(score, at).
  template <detail::TensorArgument<3, T> X, MaskArgument M, ScoreArgument<Accumulator<T>> F>
  [[nodiscard]] Tensor<T, 3> forward(const X& input, const M& mask, const ForwardOptions<T, F>& options,
                                     Activations& saved) const {
    static_assert(detail::explain_derivative<F, Accumulator<T>>());
    detail::require(options.cache.get() == nullptr, in_forward, both_kept);
    const auto x = detail::view_of_argument<T, 3>(input);
    auto y = detail::make_tensor<T, 3>(x.shape());
    const auto& score = detail::as_score<Accumulator<T>>(options.score);
    run_saving({.y = y, .x = x, .context = options.context, .positions = options.positions}, mask, score, saved);
    return y;
  }
  /// There is no backward pass through the tokens in a cache.
  template <class X, class M>
  Tensor<T, 3> forward(const X&, const M&, CacheRef<T>, Activations&) const {
    static_assert(!std::same_as<X, X>,
                  "attn: a cache together with activations; backward goes through the tokens of one call, so train "
                  "without a cache: forward(x, mask, saved)");
    return {};
  }

  /// The gradient of the input, of a sum over the output weighted by grad_y; adds those of the parameters to what they are.
  /// May follow forward any number of times.
  ///
  /// Shapes: grad_y [B,S,E] -> [B,S,E]; grad_mask, where given, is written: the gradient of the additive mask, in its own
  /// shape at rank 4; grad_context, where given, likewise: of the context of cross-attention [B,K,C].
  /// Types: sums and parameters' gradients in float, for double in double.
  /// Conventions: dropout drops what forward dropped. The number of threads does not change a bit.
  /// Errors, before any work: activations that are empty or of another module; other shapes; a layer that cannot be trained;
  /// grad_mask unless the mask has just one additive tensor; grad_context without context_size; gradients that share memory.
  template <detail::TensorArgument<3, T> G = View<const T, 3>>
  [[nodiscard]] Tensor<T, 3> backward(const G& grad_y, const Activations& saved, View<Accumulator<T>, 4> grad_mask = {},
                                      View<T, 3> grad_context = {}) {
    const auto gradient = detail::view_of_argument<T, 3>(grad_y);
    auto grad_x = detail::make_tensor<T, 3>(gradient.shape());
    run_backward({grad_x, grad_context, grad_mask}, gradient, saved);
    return grad_x;
  }
  /// The same, written into a tensor [B,S,E] of the caller's that does not overlap grad_y.
  template <detail::TensorArgument<3, T> G = View<const T, 3>>
  void backward_into(View<T, 3> grad_x, const G& grad_y, const Activations& saved,
                     View<Accumulator<T>, 4> grad_mask = {}, View<T, 3> grad_context = {}) {
    run_backward({grad_x, grad_context, grad_mask}, detail::view_of_argument<T, 3>(grad_y), saved);
  }

  /// All parameters, "query.weight" to "out_proj.bias", then "query_norm.weight", "key_norm.weight" and "sinks"; those that
  /// two projections share are listed once. Errors: as Linear::parameters.
  [[nodiscard]] std::vector<Parameter<T>> parameters();
  /// Sets the gradients of all parameters to 0.
  void zero_gradients() {
    for (Linear<T>* layer : projections()) layer->zero_gradients();
    for (RmsNorm<T>* norm : {query_norm_.get(), key_norm_.get()})
      if (norm != nullptr) norm->zero_gradients();
    if (sinks_) std::fill(sinks_->gradient.begin(), sinks_->gradient.end(), Accumulator<T>{0});
  }

  template <detail::TensorArgument<3, T> X = View<const T, 3>, MaskArgument M = NoMask>
  [[nodiscard]] Tensor<T, 3> operator()(const X& x, const M& mask = {}, CacheRef<T> cache = {}) const {
    return forward(x, mask, cache);
  }

 private:
  using Sinks = detail::Sinks<T>;
  using Arguments = detail::LlamaArguments<T>;
  using Gradients = detail::LlamaGradients<T>;
  using BoundRules = detail::BoundRules<T>;
  static constexpr auto in_forward = "LlamaAttention::forward";
  static constexpr auto both_kept =
      "options, expected a cache or activations, got both: backward goes through the tokens of one call";

  std::array<Linear<T>*, 4> projections() { return {&query_, &key_, &value_, &out_proj_}; }
  std::array<const Linear<T>*, 4> projections() const { return {&query_, &key_, &value_, &out_proj_}; }

  /// A different seed for each part. Without a seed of the module there is none, and each part draws its own.
  [[nodiscard]] std::optional<std::uint64_t> part_seed(std::uint64_t part) const {
    return config_->seed ? std::optional(splitmix64(splitmix64(*config_->seed) + part)) : std::nullopt;
  }
  [[nodiscard]] detail::LlamaSizes sizes() const { return detail::LlamaSizes(*config_); }
  [[nodiscard]] bool is_cross() const { return config_->context_size > 0; }

  /// How many keys a query of x sees at most.
  [[nodiscard]] Index keys_of(View<const T, 3> x, View<const T, 3> context, const KvCache<T>* cache) const {
    if (is_cross()) return cache != nullptr ? cache->max_length() : context.dimension(1);
    return x.dimension(1) + (cache != nullptr ? cache->max_length() : 0);
  }
  [[nodiscard]] detail::AttentionSizes attention_sizes(View<const T, 3> x, View<const T, 3> context,
                                                       const KvCache<T>* cache) const {
    return {.B = x.dimension(0),
            .H = config_->num_attention_heads,
            .G = config_->num_key_value_heads,
            .S = x.dimension(1),
            .T = keys_of(x, context, cache),
            .D = config_->head_dim,
            .Dv = config_->value_head_dim};
  }

  // ---- Checks, before any work; these and the steps are in llama_attention_forward.hpp ----

  /// Projections may have been replaced by layers of other sizes.
  [[gnu::cold]] void check_projections(std::string_view fn) const;
  void check_cache(std::string_view fn, Index B, Index S, const KvCache<T>& cache) const;
  void check_context(std::string_view fn, Index B, View<const T, 3> context, bool cached) const;
  /// Checks everything but the mask and the score function.
  [[gnu::cold]] void check(const Arguments& arguments) const;

  // ---- Steps ----

  using Intermediates = LlamaIntermediates<T>;
  /// Lays out the intermediates of S queries and K keys in memory; without memory, measures them.
  /// training: whether what backward reads is kept apart from what later steps make of it.
  Intermediates lay_out(detail::Scratch& memory, Index B, Index S, Index K, bool training) const;
  Intermediates begin(const Workspace::Frame& frame, const Arguments& arguments) const;
  /// Fills in where each sequence stands, and the heads' sinks.
  void set_up(Intermediates& call, const Arguments& arguments) const;
  /// Not inlined: four calls would compile the same checks four times.
  [[gnu::noinline]] static void multiply(const Linear<T>& layer, const View<T, 3>& y, const View<const T, 3>& x) {
    layer.forward_into(y, x);
  }
  /// Computes queries, keys and values, the latter two of `source`. Where keys and values are tied, one product serves
  /// both: v is k, or, before k is changed, a copy of it.
  void project(Intermediates& call, View<const T, 3> x, View<const T, 3> source) const;
  void project_keys(Intermediates& call, View<const T, 3> source) const;
  /// Normalises queries and keys.
  void normalise(const Intermediates& call) const;
  /// Rotates queries and keys by position.
  void rotate(const Intermediates& call) const;
  /// Writes keys and values behind those in the cache, which does not count them yet: a later step may fail.
  void append(Intermediates& call, KvCache<T>* cache) const;
  [[nodiscard]] AttentionOptions attention_options(const Intermediates& call) const;
  /// Attention of all queries over all keys, those of the call or of the cache, under rules as kernels see them.
  void attend(const Intermediates& call, const detail::AttentionSizes& sizes, const BoundRules& rules,
              const KvCache<T>* cache, View<T, 4> weights) const;
  /// Multiplies by the gates, projects, applies dropout.
  void output(const View<T, 3>& y, Intermediates& call) const;
  /// All steps. They are compiled once: only the rules, three functions for the kernels, depend on the types of the mask
  /// and of the score function.
  void run_steps(const Arguments& arguments, Intermediates& call, const BoundRules& rules) const;
  /// The mask, the module's window and the ends of the sequences joined. Computes the lengths that rotary asks for.
  template <class M>
  auto join(const M& mask, const Intermediates& call, Index S, const Padding& ends) const;
  /// One call: checks, then steps under the mask joined with what the module adds.
  template <class M, class F>
  void run(const Arguments& arguments, const M& given, const F& score) const;
  [[nodiscard]] KvCache<T> project_context(View<const T, 3> context) const;

  // ---- Training: in llama_attention_backward.hpp ----

  void lay_out(Activations& saved, const Arguments& arguments) const;
  template <class M, class F>
  void run_saving(const Arguments& arguments, const M& mask, const F& score, Activations& saved) const;
  void check_backward(const Gradients& out, View<const T, 3> grad_y, const Activations& saved) const;
  void run_backward(const Gradients& out, View<const T, 3> grad_y, const Activations& saved);
  /// Projections backward, of what `project` computed.
  void backward_of_projections(const Gradients& out, const Activations& saved, const Intermediates& grad);
  [[nodiscard]] std::array<const void*, 4> layer_identities() const;

  detail::EmptyWhenMoved<LlamaAttentionConfig> config_;
  std::shared_ptr<const Rotary> rotary_;  // null without rotary
  Linear<T> query_;
  Linear<T> key_;
  Linear<T> value_;
  Linear<T> out_proj_;
  std::shared_ptr<RmsNorm<T>> query_norm_;  // null without norms
  std::shared_ptr<RmsNorm<T>> key_norm_;
  std::shared_ptr<Sinks> sinks_;  // null without sinks
  Dropout<T> attention_dropout_;
  Dropout<T> projection_dropout_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

#include "llama_attention_forward.hpp"
#include "llama_attention_backward.hpp"
