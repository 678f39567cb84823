// Floor 4. The backward pass of scaled dot-product attention.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>

#include "attention.hpp"
#include "kernel/attention_backward.hpp"
#include "kernel/bias_backward.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// What scaled_dot_product_attention_backward returns. Parts that were not asked for are empty.
template <Scalar T>
struct AttentionGradients {
  Tensor<T, 4> q;                        ///< [B,H,S,D]
  Tensor<T, 4> k;                        ///< [B,G,T,D]
  Tensor<T, 4> v;                        ///< [B,G,T,Dv]
  Tensor<Accumulator<T>, 4> mask;        ///< of the additive mask, in its own shape at rank 4: options.mask_gradient
  Tensor<Accumulator<T>, 4> score_bias;  ///< of the ScoreBias, likewise: options.score_bias_gradient
  Tensor<Accumulator<T>, 1> sinks{};     ///< [H]: options.sinks_gradient
};

/// Memory of the caller's that gradients are written into. Views left empty are not written. They share memory neither
/// with each other nor with anything that is read.
template <Scalar T>
struct AttentionGradientOutputs {
  View<T, 4> q;                        ///< [B,H,S,D]
  View<T, 4> k;                        ///< [B,G,T,D]
  View<T, 4> v;                        ///< [B,G,T,Dv]
  View<Accumulator<T>, 4> mask;        ///< [B or 1, H or 1, S or 1, T or 1], as the additive mask
  View<Accumulator<T>, 4> score_bias;  ///< the same, as the ScoreBias
  View<Accumulator<T>, 1> sinks{};     ///< [H]
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

inline constexpr auto in_attention_backward = "scaled_dot_product_attention_backward";

/// What a backward pass reads besides q, k and v.
template <Scalar T>
struct AttentionBackwardInputs {
  View<const T, 4> grad_output;
  View<const T, 4> output;
  View<const Accumulator<T>, 3> log_sum_exp;
  View<const Accumulator<T>, 3> grad_log_sum_exp;  ///< absent: 0
};

template <Scalar T>
void check_backward(const AttentionSizes& n, const AttentionBackwardInputs<T>& in,
                    const AttentionGradientOutputs<T>& out, const std::array<Layout, 3>& qkv) {
  constexpr auto fn = in_attention_backward;
  require_shape(fn, "grad_output [B,H,S,Dv]", in.grad_output, {n.B, n.H, n.S, n.Dv});
  require_shape(fn, "output [B,H,S,Dv] of the forward call", in.output, {n.B, n.H, n.S, n.Dv});
  require_shape(fn, "log_sum_exp [B,H,S] of the forward call, which returns it with options.log_sum_exp = true",
                in.log_sum_exp, {n.B, n.H, n.S});
  require((in.grad_output.stride(3) == 1 && in.output.stride(3) == 1) || n.Dv <= 1, fn,
          "grad_output and output, expected a contiguous last axis");
  require(is_packed(in.log_sum_exp), fn, "log_sum_exp, expected a packed tensor");
  if (!is_absent(in.grad_log_sum_exp)) {
    require_shape(fn, "gradient of log_sum_exp [B,H,S]", in.grad_log_sum_exp, {n.B, n.H, n.S});
    require(is_packed(in.grad_log_sum_exp), fn, "gradient of log_sum_exp, expected a packed tensor");
  }
  if (!is_absent(out.q)) require_shape(fn, "gradient of q [B,H,S,D]", out.q, {n.B, n.H, n.S, n.D});
  if (!is_absent(out.k)) require_shape(fn, "gradient of k [B,G,T,D]", out.k, {n.B, n.G, n.T, n.D});
  if (!is_absent(out.v)) require_shape(fn, "gradient of v [B,G,T,Dv]", out.v, {n.B, n.G, n.T, n.Dv});
  if (!is_absent(out.sinks)) require_shape(fn, "gradient of sinks [H]", out.sinks, {n.H});
  const std::array<Layout, 6> outputs{layout_of("gradient of q", out.q),
                                      layout_of("gradient of k", out.k),
                                      layout_of("gradient of v", out.v),
                                      layout_of("gradient of the mask", out.mask),
                                      layout_of("gradient of the ScoreBias", out.score_bias),
                                      layout_of("gradient of sinks", out.sinks)};
  const std::array<Layout, 7> inputs{qkv[0],
                                     qkv[1],
                                     qkv[2],
                                     layout_of("grad_output", in.grad_output),
                                     layout_of("output", in.output),
                                     layout_of("log_sum_exp", in.log_sum_exp),
                                     layout_of("gradient of log_sum_exp", in.grad_log_sum_exp)};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].reach == 0) continue;
    require(outputs[i].stride.back() == 1 || outputs[i].shape.back() <= 1, fn, outputs[i].name,
            ", expected a contiguous last axis");
    require_distinct(fn, outputs[i]);
    for (const Layout& input : inputs) require_apart(fn, outputs[i], input);
    for (std::size_t j = 0; j < i; ++j) require_apart(fn, outputs[i], outputs[j]);
  }
}

/// Refuses the gradient of a tensor where there is none, or more than one.
inline void require_one(int tensors, std::string_view what, std::string_view kind) {
  require(tensors == 1, in_attention_backward, what, ", expected ", kind, ", got ", tensors, " of them");
}
template <Scalar T, class M, class F>
void check_bias_gradients(const AttentionGradientOutputs<T>& out, const M& mask, const F& score) {
  if (!is_absent(out.mask)) {
    require_one(additive_masks<M>, "gradient of the mask", "a mask with one tensor that is added to the scores");
    if constexpr (additive_masks<M> == 1)
      require_shape(in_attention_backward, "gradient of the mask", out.mask, additive_shape(mask));
  }
  if (!is_absent(out.score_bias)) {
    require_one(score_biases<F>, "gradient of the ScoreBias", "a score function with one ScoreBias");
    if constexpr (score_biases<F> == 1)
      require_shape(in_attention_backward, "gradient of the ScoreBias", out.score_bias, bias_shape(score));
  }
}

/// Gradients where there is no query or no key.
template <class T>
void set_to_zero(const View<T, 4>& x) {
  for (Index b = 0; b < x.dimension(0) && x.data() != nullptr; ++b)
    for (Index h = 0; h < x.dimension(1); ++h)
      for (Index s = 0; s < x.dimension(2); ++s)
        for (Index d = 0; d < x.dimension(3); ++d) x(b, h, s, d) = T(0);
}

/// One pass, or two where partial sums of the gradient of q would take too much memory.
template <class Q>
void run_attention_backward(const kernel::AttentionBackwardProblem<Q>& problem,
                            const kernel::AttentionBackwardKernels<Q>& kernels,
                            const kernel::GradientRules<kernel::AccumulatorOf<Q>>& rules) {
  using A = kernel::AccumulatorOf<Q>;
  using Tasks = kernel::AttentionBackwardTasks<Q>;
  const bool keys = problem.grad_k.data != nullptr || problem.grad_v.data != nullptr;
  const bool queries = problem.grad_q.data != nullptr;
  if (!keys || !queries || !Tasks::fits_one_pass(problem.forward)) {
    if (keys) run_tasks(Tasks(problem, rules, kernels, kernel::BackwardPass::keys));
    if (queries) run_tasks(Tasks(problem, rules, kernels, kernel::BackwardPass::queries));
    return;
  }
  Tasks tasks(problem, rules, kernels, kernel::BackwardPass::all);
  if (tasks.partials() == 0) return run_tasks(tasks);
  const Workspace::Frame frame;
  tasks.set_partials(frame.take<A>(tasks.partials()));
  run_tasks(tasks);
  run_tasks(tasks.joins(), static_cast<double>(tasks.partials()), tasks.join_scratch_size(),
            [&](Index task, std::byte* memory) { tasks.join(task, Scratch(memory)); });
}

/// The gradient of sinks: of each head, -(sum over rows of exp(sink - log-sum-exp) * delta), see BackwardBlock.
template <Scalar T>
void add_up_sinks(const AttentionSizes& n, View<Accumulator<T>, 1> gradient, const AttentionBackwardInputs<T>& in,
                  std::span<const double> sinks) {
  using A = Accumulator<T>;
  const auto rows_of = [&](Index h) {
    double sum = 0.0;
    for (Index b = 0; b < n.B; ++b)
      for (Index s = 0; s < n.S; ++s) {
        double delta = is_absent(in.grad_log_sum_exp) ? 0.0 : -static_cast<double>(in.grad_log_sum_exp(b, h, s));
        for (Index d = 0; d < n.Dv; ++d)
          delta += static_cast<double>(in.grad_output(b, h, s, d)) * static_cast<double>(in.output(b, h, s, d));
        sum -= std::exp(sinks[static_cast<std::size_t>(h)] - static_cast<double>(in.log_sum_exp(b, h, s))) * delta;
      }
    return sum;
  };
  run_tasks(n.H, static_cast<double>(n.B * n.H * n.S) * static_cast<double>(n.Dv), 0,
            [&](Index h, std::byte*) { gradient(h) = sinks.empty() ? A{0} : static_cast<A>(rows_of(h)); });
}

/// A backward pass whose arguments have been checked.
template <Scalar T>
void run_checked_backward(const AttentionSizes& n, const AttentionGradientOutputs<T>& out,
                          const AttentionBackwardInputs<T>& in, View<const T, 4> q, View<const T, 4> k,
                          View<const T, 4> v, Isa isa, const kernel::GradientRules<Accumulator<T>>& rules,
                          const AttentionOptions& options) {
  using Stored = kernel::Stored<T>;
  if (!is_absent(out.sinks)) add_up_sinks(n, out.sinks, in, options.sinks);
  if (n.B * n.H * n.S * n.T == 0) {
    for (const View<T, 4>& x : {out.q, out.k, out.v}) set_to_zero(x);
    for (const View<Accumulator<T>, 4>& x : {out.mask, out.score_bias}) set_to_zero(x);
    return;
  }
  const StoredHeads<Accumulator<T>> keys = stored_heads(k, isa), values = stored_heads(v, isa);
  const kernel::AttentionBackwardProblem<Stored> problem{
      .forward = attention_problem(n, q, keys.rows, values.rows, options, AttentionOutputs<T>{}),
      .y = heads_of(in.output),
      .log_sum_exp = in.log_sum_exp.data(),
      .grad_y = heads_of(in.grad_output),
      .grad_log_sum_exp = in.grad_log_sum_exp.data(),
      .grad_q = heads_of(out.q),
      .grad_k = heads_of(out.k),
      .grad_v = heads_of(out.v)};
  const kernel::AttentionBackwardKernels<Stored> kernels{
      .forward = {.arithmetic = kernel::arithmetic_of<Accumulator<T>>(isa),
                  .queries = kernel::codec_of<Stored>(isa),
                  .keys = *keys.format,
                  .values = *values.format},
      .gradients = kernel::gradient_arithmetic_of<Accumulator<T>>(isa)};
  run_attention_backward(problem, kernels, rules);
  const auto add_bias = [&](const View<Accumulator<T>, 4>& gradient, kernel::SlopesPanel<Accumulator<T>> slopes) {
    if (is_absent(gradient)) return;
    run_tasks(kernel::BiasGradientTasks<Stored>(problem, rules.forward, kernels, slopes, heads_of(gradient),
                                                gradient.shape()));
  };
  add_bias(out.mask, nullptr);
  add_bias(out.score_bias, rules.bias_slopes);
}

}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Gradients of a sum over the output of scaled_dot_product_attention weighted by `grad_output`, written into the caller's
/// memory. Else as scaled_dot_product_attention_backward.
/// Errors: besides, outputs that share memory with each other or with what is read, or reach an element twice.
template <Scalar T, detail::TensorArgument<4, T> dY, detail::TensorArgument<4, T> Q, detail::TensorArgument<4, T> K,
          detail::TensorArgument<4, T> V, MaskArgument M = NoMask, ScoreArgument<Accumulator<T>> F = NoScore>
void scaled_dot_product_attention_backward_into(
    const AttentionGradientOutputs<T>& out, const dY& grad_output, const Q& q, const K& k, const V& v,
    std::type_identity_t<View<const T, 4>> output, std::type_identity_t<View<const Accumulator<T>, 3>> log_sum_exp,
    const M& mask = {}, const F& score = {}, const AttentionOptions& options = {},
    std::type_identity_t<View<const Accumulator<T>, 3>> grad_log_sum_exp = {}) {
  constexpr auto fn = detail::in_attention_backward;
  using A = Accumulator<T>;
  const View<const T, 4> queries = detail::view_of_argument<T, 4>(q), keys = detail::view_of_argument<T, 4>(k),
                         values = detail::view_of_argument<T, 4>(v);
  const auto typed_mask = as_mask(mask);
  const auto& typed_score = detail::as_score<A>(score);
  static_assert(detail::explain_derivative<std::remove_cvref_t<decltype(typed_score)>, A>());
  const detail::AttentionSizes n =
      detail::check_attention<T>(fn, queries, keys, values, typed_mask, typed_score, options, {});
  const detail::AttentionBackwardInputs<T> in{detail::view_of_argument<T, 4>(grad_output), output, log_sum_exp,
                                              grad_log_sum_exp};
  detail::check_backward<T>(
      n, in, out, {detail::layout_of("q", queries), detail::layout_of("k", keys), detail::layout_of("v", values)});
  detail::check_bias_gradients(out, typed_mask, typed_score);
  const Isa isa = active_isa();
  detail::run_checked_backward<T>(n, out, in, queries, keys, values, isa,
                                  kernel::gradient_rules_of<A>(isa, typed_mask, typed_score), options);
}

/// Gradients of a sum over the output of scaled_dot_product_attention weighted by `grad_output`, and, where given, over
/// its log-sum-exp weighted by `grad_log_sum_exp`. Weights are computed again, block by block, so that memory grows with
/// S and T, not with their product; blocks that the mask calls empty are never read.
///
/// Shapes: grad_output [B,H,S,Dv]; q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv], mask, score and options as given to the forward
/// call, and its result, which `options.log_sum_exp = true` made complete -> gradients of the shapes of q, k and v, and of the
/// additive mask, the ScoreBias and the sinks where options ask for them.
/// Types: sums in float, for double in double; gradients are rounded once to the type of the tensors, those of mask and
/// ScoreBias not at all.
/// score: differentiated by dual numbers, so that a callable takes its score as `auto`; or by its member derivative(score, at).
/// Conventions: dropout drops the same weights again. A row with no key left has gradient 0. The number of threads does
/// not change a bit.
/// Errors: besides those of the forward call, a result without log-sum-exp, gradients of another shape, a gradient of a
/// mask or ScoreBias that is not there.
/// Source: Dao, "FlashAttention-2", 2023, algorithm 2.
template <detail::TensorArgument<4> dY, detail::TensorArgument<4, detail::ScalarOf<dY>> Q,
          detail::TensorArgument<4, detail::ScalarOf<dY>> K, detail::TensorArgument<4, detail::ScalarOf<dY>> V,
          MaskArgument M = NoMask, ScoreArgument<Accumulator<detail::ScalarOf<dY>>> F = NoScore>
[[nodiscard]] AttentionGradients<detail::ScalarOf<dY>> scaled_dot_product_attention_backward(
    const dY& grad_output, const Q& q, const K& k, const V& v, const AttentionResult<detail::ScalarOf<dY>>& result,
    const M& mask = {}, const F& score = {}, const AttentionOptions& options = {},
    View<const Accumulator<detail::ScalarOf<dY>>, 3> grad_log_sum_exp = {}) {
  using T = detail::ScalarOf<dY>;
  using A = Accumulator<T>;
  AttentionGradients<T> gradients{detail::make_tensor<T, 4>(detail::view_of_argument<T, 4>(q).shape()),
                                  detail::make_tensor<T, 4>(detail::view_of_argument<T, 4>(k).shape()),
                                  detail::make_tensor<T, 4>(detail::view_of_argument<T, 4>(v).shape()),
                                  {},
                                  {},
                                  {}};
  AttentionGradientOutputs<T> out{View<T, 4>(gradients.q), View<T, 4>(gradients.k), View<T, 4>(gradients.v), {}, {}};
  if (options.sinks_gradient) {
    gradients.sinks = detail::make_tensor<A, 1>({out.q.dimension(1)});
    out.sinks = View<A, 1>(gradients.sinks);
  }
  if (options.mask_gradient) {
    const auto typed_mask = as_mask(mask);
    constexpr int masks = detail::additive_masks<std::remove_cvref_t<decltype(typed_mask)>>;
    detail::require_one(masks, "options.mask_gradient", "a mask with one tensor that is added to the scores");
    if constexpr (masks == 1) {
      gradients.mask = detail::make_tensor<A, 4>(detail::additive_shape(typed_mask));
      out.mask = View<A, 4>(gradients.mask);
    }
  }
  if (options.score_bias_gradient) {
    detail::require_one(detail::score_biases<F>, "options.score_bias_gradient", "a score function with one ScoreBias");
    if constexpr (detail::score_biases<F> == 1) {
      gradients.score_bias = detail::make_tensor<A, 4>(detail::bias_shape(score));
      out.score_bias = View<A, 4>(gradients.score_bias);
    }
  }
  scaled_dot_product_attention_backward_into(out, grad_output, q, k, v, result.output, result.log_sum_exp, mask, score,
                                             options, grad_log_sum_exp);
  return gradients;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
