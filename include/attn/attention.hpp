// Floor 4. Scaled dot-product attention: check, plan, one flat list of tasks, kernel.
#pragma once

#include <array>
#include <cstddef>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "kernel/attention_decode.hpp"
#include "kernel/attention_forward.hpp"
#include "kernel/isa/targets.hpp"
#include "kv_cache.hpp"
#include "mask.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "philox.hpp"
#include "score.hpp"
#include "stored_heads.hpp"
#include "tensor.hpp"
#include "tensor_argument.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// How scaled_dot_product_attention computes, and what it returns besides the output.
struct AttentionOptions {
  std::optional<double> scale = {};  ///< factor on q kT; 1 / sqrt(D) where not set
  double dropout = 0.0;              ///< probability that an attention weight is dropped, in [0,1]
  std::uint64_t seed = 0;      ///< dropout's random numbers: the same seed, call and position drop the same weights
  std::uint32_t call = 0;      ///< which use of the seed this is: count it up from step to step
  bool log_sum_exp = false;    ///< also return log sum exp of the scores, [B,H,S]; -inf where a row has no key
  bool weights = false;        ///< also return the attention weights after dropout, [B,H,S,T]
  bool mask_gradient = false;  ///< backward: also return the gradient of the additive mask
  bool score_bias_gradient = false;  ///< backward: also return the gradient of the ScoreBias
  /// Where the first query of each batch entry stands among the keys; T - S for all where empty. It is what
  /// Position::query counts from. KvCache gives it for sequences of unlike length.
  std::span<const Index> query_start = {};
  /// The score of each head's sink, [H]: one more key, seen by every query before any mask or score function, whose value
  /// is 0. It takes weight away from the others. -inf: none.
  std::span<const double> sinks = {};
  bool sinks_gradient = false;  ///< backward: also return the gradient of the sinks
};

/// What scaled_dot_product_attention returns. Parts that were not asked for are empty.
template <Scalar T>
struct AttentionResult {
  Tensor<T, 4> output;                    ///< [B,H,S,Dv]
  Tensor<Accumulator<T>, 3> log_sum_exp;  ///< [B,H,S]
  Tensor<T, 4> weights;                   ///< [B,H,S,T]
};

/// Memory of the caller's that an attention writes into. Views left empty are not written. They share memory neither
/// with each other nor with q, k and v, nor with tensors that a mask or a score function refers to; slices of one buffer
/// that interleave are fine.
template <Scalar T>
struct AttentionOutputs {
  View<T, 4> output;                    ///< [B,H,S,Dv]
  View<Accumulator<T>, 3> log_sum_exp;  ///< [B,H,S], packed
  View<T, 4> weights;                   ///< [B,H,S,T], packed
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

/// Batch, query heads, key/value heads, queries, keys, head size of q and k, and of v.
struct AttentionSizes {
  Index B, H, G, S, T, D, Dv;
};

/// The most queries, keys and heads of a call, so that differences of positions fit 32 bits as well.
inline constexpr Index most_indices = Index{1} << 30;
[[nodiscard]] inline bool fits_positions(const AttentionSizes& n) {
  return n.S <= most_indices && n.T <= most_indices && n.B <= most_indices && n.H <= most_indices &&
         (n.H == 0 || n.B <= most_indices / n.H);
}

/// Whether a view is as it was made, without memory: the result was not asked for.
template <class T, int Rank>
[[nodiscard]] bool is_absent(const View<T, Rank>& x) {
  return x.data() == nullptr && x.shape() == typename View<T, Rank>::Sizes{};
}

/// Whether the accumulator can hold a scale; by its bits, so that NaN and infinities are found with -ffast-math as well.
template <class A>
[[nodiscard]] bool is_scale(double scale) {
  return magnitude_bits(scale) <= bits_of(double{std::numeric_limits<A>::max()});
}

/// Shapes of outputs that were asked for, and that their memory is their own.
template <Scalar X>
void check_outputs(std::string_view fn, const AttentionSizes& n, const AttentionOutputs<X>& out,
                   const std::array<Layout, 3>& inputs) {
  checked_size<X>(fn, "output [B,H,S,Dv]", std::array<Index, 4>{n.B, n.H, n.S, n.Dv});
  if (!is_absent(out.output)) {
    require_shape(fn, "output [B,H,S,Dv]", out.output, {n.B, n.H, n.S, n.Dv});
    require(out.output.stride(3) == 1 || n.Dv <= 1, fn, "output, expected a contiguous last axis");
  }
  if (!is_absent(out.log_sum_exp)) {
    require_shape(fn, "log_sum_exp [B,H,S]", out.log_sum_exp, {n.B, n.H, n.S});
    require(is_packed(out.log_sum_exp), fn, "log_sum_exp, expected a packed tensor");
  }
  if (!is_absent(out.weights)) {
    require_shape(fn, "weights [B,H,S,T]", out.weights, {n.B, n.H, n.S, n.T});
    require(is_packed(out.weights), fn, "weights, expected a packed tensor");
  }
  const std::array<Layout, 3> outputs{layout_of("output", out.output), layout_of("log_sum_exp", out.log_sum_exp),
                                      layout_of("weights", out.weights)};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].reach == 0) continue;
    require_distinct(fn, outputs[i]);
    for (const Layout& input : inputs) require_apart(fn, outputs[i], input);
    for (std::size_t j = 0; j < i; ++j) require_apart(fn, outputs[i], outputs[j]);
  }
}

/// All checks of scaled_dot_product_attention, before any work.
template <Scalar X>
AttentionSizes check_attention(std::string_view fn, View<const X, 4> q, View<const X, 4> k, View<const X, 4> v,
                               const AttentionOptions& options, const AttentionOutputs<X>& out) {
  const AttentionSizes n{q.dimension(0), q.dimension(1), k.dimension(1), q.dimension(2),
                         k.dimension(2), q.dimension(3), v.dimension(3)};
  require_shape(fn, "k [B,G,T,D]", k, {n.B, n.G, n.T, n.D});
  require_shape(fn, "v [B,G,T,Dv], as many keys as values", v, {n.B, n.G, n.T, n.Dv});
  require(n.H == 0 || (n.G > 0 && n.H % n.G == 0), fn, "query heads, expected a multiple of ", n.G,
          " key/value heads, got q ", as_shape(q.shape()));
  require(n.D >= 1, fn, "head size, expected at least 1, got q ", as_shape(q.shape()));
  constexpr Index limit = most_indices;
  require(fits_positions(n), fn, "expected at most 2^30 queries, keys and heads, got q ", as_shape(q.shape()), ", k ",
          as_shape(k.shape()));
  require(n.D <= limit && n.Dv <= limit, fn, "head sizes, expected at most 2^30, got q ", as_shape(q.shape()), ", v ",
          as_shape(v.shape()));
  require((q.stride(3) == 1 || n.D == 1) && (k.stride(3) == 1 || n.D == 1) && (v.stride(3) == 1 || n.Dv <= 1), fn,
          "views, expected a contiguous last axis");
  require(is_probability(options.dropout), fn, "dropout, expected a probability in [0,1], got ", options.dropout);
  require(!options.scale || is_scale<Accumulator<X>>(*options.scale), fn,
          "scale, expected a finite number of the type of scores, got ", options.scale ? *options.scale : 0.0);
  require(options.query_start.empty() || std::ssize(options.query_start) == n.B, fn,
          "query_start, expected one for each of ", n.B, " batch entries, got ", std::ssize(options.query_start));
  for (const Index start : options.query_start)
    require(start >= -limit && start <= limit - n.S, fn, "query_start, expected a position within 2^30, got ", start);
  require(options.sinks.empty() || std::ssize(options.sinks) == n.H, fn, "sinks, expected one for each of ", n.H,
          " query heads, got ", std::ssize(options.sinks));
  for (const double sink : options.sinks)
    require(is_scale<Accumulator<X>>(sink) || bits_of(sink) == bits_of(-std::numeric_limits<double>::infinity()), fn,
            "sinks, expected finite numbers of the type of scores, or -inf, got ", sink);
  check_outputs(fn, n, out, {layout_of("q", q), layout_of("k", k), layout_of("v", v)});
  return n;
}

template <Scalar X, class M, class F>
AttentionSizes check_attention(std::string_view fn, View<const X, 4> q, View<const X, 4> k, View<const X, 4> v,
                               const M& mask, const F& score, const AttentionOptions& options,
                               const AttentionOutputs<X>& out) {
  const AttentionSizes n = check_attention(fn, q, k, v, options, out);
  if constexpr (HasCheck<M>) mask.check(fn, n.B, n.H, n.S, n.T);
  if constexpr (HasCheck<F>) score.check(fn, n.B, n.H, n.S, n.T);
  return n;
}

template <class T>
[[nodiscard]] auto heads_of(View<T, 4> x) {
  auto* const data = kernel::stored(x.data());
  return kernel::Heads<std::remove_pointer_t<decltype(kernel::stored(x.data()))>>{data, x.stride(0), x.stride(1),
                                                                                  x.stride(2)};
}

/// Not inlined: g++ 12 would take the empty optional of default options for one that is read.
[[nodiscard, gnu::noinline]] inline double scale_of(const AttentionOptions& options, Index D) {
  return options.scale.value_or(1.0 / std::sqrt(static_cast<double>(D)));
}

/// The problem as kernels are told it.
template <Scalar X>
[[nodiscard]] kernel::AttentionProblem<kernel::Stored<X>> attention_problem(const AttentionSizes& n, View<const X, 4> q,
                                                                            const kernel::StoredRows& k,
                                                                            const kernel::StoredRows& v,
                                                                            const AttentionOptions& options,
                                                                            const AttentionOutputs<X>& out) {
  return {.B = n.B,
          .H = n.H,
          .G = n.G,
          .S = n.S,
          .T = n.T,
          .D = n.D,
          .Dv = n.Dv,
          .q = heads_of(q),
          .k = k,
          .v = v,
          .y = heads_of(out.output),
          .log_sum_exp = out.log_sum_exp.data(),
          .weights = kernel::stored(out.weights.data()),
          .scale = static_cast<Accumulator<X>>(scale_of(options, n.D)),
          .dropout = DropoutRule(options.dropout, options.seed, options.call),
          .query_start = options.query_start.empty() ? nullptr : options.query_start.data(),
          .sinks = options.sinks.empty() ? nullptr : options.sinks.data()};
}

/// Few queries: chunks of keys, then the chunks of each row are joined. Else: blocks of queries.
template <class Q>
void run_attention(const kernel::AttentionProblem<Q>& problem, const kernel::AttentionKernels<Q>& kernels,
                   const kernel::Rules<kernel::AccumulatorOf<Q>>& rules) {
  if (!kernel::DecodeTasks<Q>::fit(problem))
    return run_tasks(kernel::AttentionTasks<Q>(problem, rules, kernels, current_executor().concurrency()));
  using A = kernel::AccumulatorOf<Q>;
  kernel::DecodeTasks<Q> tasks(problem, rules, kernels);
  const Workspace::Frame frame;
  tasks.set_partials(frame.take<A>(
      checked_size<A>("scaled_dot_product_attention", "scratch memory for partial sums", as_shape(tasks.partials()))));
  run_tasks(tasks);
  auto* const scratch = frame.take<std::byte>(tasks.scratch_size());
  for (Index row = 0; row < problem.B * problem.H * problem.S; ++row) tasks.join(row, Scratch(scratch));
}

/// What an attention is written into: AttentionOutputs or a tensor.
template <class X, class T>
constexpr bool explain_output() {
  if constexpr (std::same_as<X, AttentionOutputs<T>>)
    return true;
  else
    return explain_tensor<X, 4, T>();
}
template <class X, class T>
concept OutputArgument = explain_output<std::remove_cvref_t<X>, T>();

/// Attention whose arguments have been checked, under a mask and a score function bound to an instruction set.
template <Scalar X>
void run_checked(const AttentionSizes& n, const AttentionOutputs<X>& out, View<const X, 4> q,
                 const StoredHeads<Accumulator<X>>& k, const StoredHeads<Accumulator<X>>& v, Isa isa,
                 const kernel::Rules<Accumulator<X>>& rules, const AttentionOptions& options) {
  if (n.B * n.H * n.S == 0 || (is_absent(out.output) && is_absent(out.log_sum_exp) && is_absent(out.weights))) return;
  kernel::AttentionKernels<kernel::Stored<X>> kernels{.arithmetic = kernel::arithmetic_of<Accumulator<X>>(isa),
                                                      .queries = kernel::codec_of<kernel::Stored<X>>(isa),
                                                      .keys = *k.format,
                                                      .values = *v.format,
                                                      .ahead = decode_prefetch()};
  if constexpr (std::same_as<X, Eigen::bfloat16>) {
    const auto* const own = &kernel::row_format_of<float, kernel::Bfloat16>(isa);
    if (k.format == own && v.format == own && bf16_dots(isa)) kernels.pairs = kernel::pair_attention_of(isa);
  }
  run_attention(attention_problem(n, q, k.rows, v.rows, options, out), kernels, rules);
}

template <Scalar X, Mask M, class F>
void attention(const AttentionOutputs<X>& out, View<const X, 4> q, View<const X, 4> k, View<const X, 4> v,
               const M& mask, const F& score, const AttentionOptions& options) {
  const AttentionSizes n = check_attention("scaled_dot_product_attention", q, k, v, mask, score, options, out);
  const Isa isa = active_isa();
  run_checked(n, out, q, stored_heads(k, isa), stored_heads(v, isa), isa,
              kernel::rules_of<Accumulator<X>>(isa, mask, score), options);
}

/// Attention over the tokens of a cache, through its window. Where options do not say where queries stand, they are the
/// last tokens.
template <Scalar X, class M, class F>
void attention(const AttentionOutputs<X>& out, View<const X, 4> q, const KvCache<X>& cache, const M& mask,
               const F& score, AttentionOptions options) {
  constexpr auto fn = "scaled_dot_product_attention";
  const std::array<Index, 4> shape{cache.batch(), cache.key_value_heads(), cache.max_length(), cache.head_size()};
  const View<const X, 4> keys(nullptr, shape), values(nullptr, {shape[0], shape[1], shape[2], cache.value_size()});
  require_shape(fn, "q [B,H,S,D], for a cache of B sequences", q,
                {cache.batch(), q.dimension(1), q.dimension(2), cache.head_size()});
  const Workspace::Frame frame;
  const std::span start(frame.take<Index>(cache.batch()), static_cast<std::size_t>(cache.batch()));
  for (std::size_t b = 0; b < start.size(); ++b) start[b] = cache.lengths()[b] - q.dimension(2);
  if (options.query_start.empty()) options.query_start = start;
  const auto window = cache.window() == 0 ? SlidingWindow::unlimited() : SlidingWindow(cache.window(), most_indices);
  const auto joined = mask & window & Padding(cache.lengths());
  const AttentionSizes n = check_attention(fn, q, keys, values, joined, score, options, out);
  cache.check_queries(fn, options.query_start);
  const Isa isa = active_isa();
  run_checked(n, out, q, cache.stored_keys(isa), cache.stored_values(isa), isa,
              kernel::rules_of<Accumulator<X>>(isa, joined, score), options);
}

/// What an attention is asked to write, as outputs; empty ones of an argument that was refused.
template <Scalar T, class Out>
AttentionOutputs<T> outputs_of(Out& out, const std::array<Index, 4>& shape) {
  if constexpr (std::same_as<std::remove_cv_t<Out>, AttentionOutputs<T>>) {
    return out;
  } else if constexpr (std::constructible_from<View<T, 4>, Out&>) {
    AttentionOutputs<T> outputs;
    outputs.output = View<T, 4>(out);
    require_shape("scaled_dot_product_attention", "output [B,H,S,Dv]", outputs.output, shape);
    return outputs;
  }
  return {};
}

/// What a result needs memory for, and that memory as outputs.
template <Scalar T>
AttentionOutputs<T> make_outputs(AttentionResult<T>& result, const std::array<Index, 4>& output, Index keys,
                                 const AttentionOptions& options) {
  result.output = make_tensor<T, 4>(output);
  AttentionOutputs<T> out;
  out.output = View<T, 4>(result.output);
  const auto& [B, H, S, Dv] = output;
  if (options.log_sum_exp) {
    result.log_sum_exp = make_tensor<Accumulator<T>, 3>({B, H, S});
    out.log_sum_exp = View<Accumulator<T>, 3>(result.log_sum_exp);
  }
  if (options.weights) {
    result.weights = make_tensor<T, 4>({B, H, S, keys});
    out.weights = View<T, 4>(result.weights);
  }
  return out;
}

}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// softmax(score(q kT * scale) + mask) v, written into the caller's memory.
/// Shapes: q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv] with H % G == 0; `out` is a tensor [B,H,S,Dv] or AttentionOutputs.
/// Else as scaled_dot_product_attention. `options.log_sum_exp` and `options.weights` are not looked at here: what
/// `out` has room for is written.
/// Errors: besides, outputs that share memory with each other or with q, k or v, or reach an element twice.
template <detail::TensorArgument<4> Q, detail::TensorArgument<4, detail::ScalarOf<Q>> K,
          detail::TensorArgument<4, detail::ScalarOf<Q>> V, MaskArgument M = NoMask,
          ScoreArgument<Accumulator<detail::ScalarOf<Q>>> F = NoScore, detail::OutputArgument<detail::ScalarOf<Q>> Out>
void scaled_dot_product_attention_into(Out&& out, const Q& q, const K& k, const V& v, const M& mask = {},
                                       const F& score = {}, const AttentionOptions& options = {}) {
  using T = detail::ScalarOf<Q>;
  const View<const T, 4> queries = detail::view_of_argument<T, 4>(q), keys = detail::view_of_argument<T, 4>(k),
                         values = detail::view_of_argument<T, 4>(v);
  const auto outputs = detail::outputs_of<T>(
      out, {queries.dimension(0), queries.dimension(1), queries.dimension(2), values.dimension(3)});
  const auto typed_mask = as_mask(mask);
  const auto& typed_score = detail::as_score<Accumulator<T>>(score);
  detail::attention<T>(outputs, queries, keys, values, typed_mask, typed_score, options);
}

/// The same over the keys and values of a cache: see scaled_dot_product_attention below.
template <Scalar T, detail::TensorArgument<4, T> Q, MaskArgument M = NoMask, ScoreArgument<Accumulator<T>> F = NoScore,
          detail::OutputArgument<T> Out>
void scaled_dot_product_attention_into(Out&& out, const Q& q, const KvCache<T>& cache, const M& mask = {},
                                       const F& score = {}, const AttentionOptions& options = {}) {
  const View<const T, 4> queries = detail::view_of_argument<T, 4>(q);
  const auto outputs = detail::outputs_of<T>(
      out, {queries.dimension(0), queries.dimension(1), queries.dimension(2), cache.value_size()});
  const auto typed_mask = as_mask(mask);
  const auto& typed_score = detail::as_score<Accumulator<T>>(score);
  detail::attention<T>(outputs, queries, cache, typed_mask, typed_score, options);
}

/// softmax(score(q kT * scale) + mask) v, each head by itself, never holding the S x T scores in memory.
///
/// Shapes: q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv] -> output [B,H,S,Dv]; H % G == 0, query head h reads key/value head
/// h / (H/G). Strided views (split_heads) are taken as they are.
/// Types: float, double, half, bfloat16; sums and softmax in float, for double in double.
/// mask: a typed mask, masks joined by &, a callable bool(Position), or an additive tensor of rank 1 to 4.
/// score: any callable (score, Position) -> score. Either may be the name of a function.
/// Conventions: scale, then score functions, then mask, softmax, dropout, times v. Queries are aligned with the last
/// keys. A row with no key left gives 0 and log-sum-exp -inf, with a sink that of the sink.
/// Errors: attn::Error for shapes that do not fit, a last axis that is not contiguous, a mask that does not broadcast,
/// dropout outside [0,1], a scale that is not finite as the type of scores.
/// Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.1; computed as in Dao, "FlashAttention-2",
/// 2023.
template <detail::TensorArgument<4> Q, detail::TensorArgument<4, detail::ScalarOf<Q>> K,
          detail::TensorArgument<4, detail::ScalarOf<Q>> V, MaskArgument M = NoMask,
          ScoreArgument<Accumulator<detail::ScalarOf<Q>>> F = NoScore>
[[nodiscard]] AttentionResult<detail::ScalarOf<Q>> scaled_dot_product_attention(const Q& q, const K& k, const V& v,
                                                                                const M& mask = {}, const F& score = {},
                                                                                const AttentionOptions& options = {}) {
  using T = detail::ScalarOf<Q>;
  const View<const T, 4> queries = detail::view_of_argument<T, 4>(q), keys = detail::view_of_argument<T, 4>(k),
                         values = detail::view_of_argument<T, 4>(v);
  AttentionResult<T> result;
  const AttentionOutputs<T> out = detail::make_outputs(
      result, {queries.dimension(0), queries.dimension(1), queries.dimension(2), values.dimension(3)},
      keys.dimension(2), options);
  scaled_dot_product_attention_into(out, queries, keys, values, mask, score, options);
  return result;
}

/// The same over the keys and values of a cache, in whatever format they are stored; each sequence as long as it is.
/// Shapes: q [B,H,S,D] -> output [B,H,S,Dv]. Conventions: queries are the last S tokens of their sequence, unless
/// options.query_start says where they stand. A cache with a window shows them no more than that.
/// Errors: as above; a cache of another batch or head size; queries whose window the cache has in part given back.
template <Scalar T, detail::TensorArgument<4, T> Q, MaskArgument M = NoMask, ScoreArgument<Accumulator<T>> F = NoScore>
[[nodiscard]] AttentionResult<T> scaled_dot_product_attention(const Q& q, const KvCache<T>& cache, const M& mask = {},
                                                              const F& score = {},
                                                              const AttentionOptions& options = {}) {
  const View<const T, 4> queries = detail::view_of_argument<T, 4>(q);
  AttentionResult<T> result;
  const AttentionOutputs<T> out = detail::make_outputs(
      result, {queries.dimension(0), queries.dimension(1), queries.dimension(2), cache.value_size()},
      cache.max_length(), options);
  scaled_dot_product_attention_into(out, queries, cache, mask, score, options);
  return result;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
