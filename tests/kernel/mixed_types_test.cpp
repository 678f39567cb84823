// Plans whose operands are stored in different types: the bits of the same plan over tensors that were converted before,
// since conversion to the accumulator is exact and the arithmetic the same.
#include <attn/kernel/attention_decode.hpp>
#include <attn/kernel/attention_forward.hpp>
#include <attn/kernel/linear_forward.hpp>
#include <attn/parallel.hpp>

#include "support.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::as_size;
using attn_test::Fenced;
using attn_test::Index;
using attn_test::Isa;
using attn_test::numbers_between;
using attn_test::on_every_isa;
using attn_test::same_bits;
using kernel::Bfloat16;
using kernel::Half;

template <class Storage>
std::vector<Storage> narrowed(Isa isa, const std::vector<float>& x) {
  std::vector<Storage> y(x.size());
  const Index n = std::ssize(x);
  kernel::codec_of<Storage>(isa).store(y.data(), n, x.data(), n, 1, n);
  return y;
}
template <class Storage>
std::vector<float> widened(Isa isa, const std::vector<Storage>& x) {
  std::vector<float> y(x.size());
  const Index n = std::ssize(x);
  kernel::codec_of<Storage>(isa).load(y.data(), n, x.data(), n, 1, n);
  return y;
}
template <class Storage>
std::vector<Storage> random_numbers(Isa isa, Index n, unsigned seed) {
  return narrowed<Storage>(isa, numbers_between<float>(-1.5, 1.5, n, seed));
}

template <class T>
void expect_same_bits(const std::vector<T>& got, const std::vector<T>& expected, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_TRUE(same_bits(got[i], expected[i])) << what << " at " << i;
}

// ---- Attention --------------------------------------------------------------------------------------------------

/// Sizes of a problem; rows of keys and values have gaps between them.
struct Sizes {
  Index B, H, G, S, T, D, Dv;
  bool weights;
};

template <class Q, class KV>
struct Operands {
  std::vector<Q> q;
  std::vector<KV> k, v;
};
template <class Q>
struct Results {
  std::vector<Q> y, weights;
  std::vector<float> log_sum_exp;
};

template <class T>
kernel::Heads<T> heads_of(T* data, Index heads, Index rows, Index row) {
  return {.data = data, .batch = heads * rows * row, .head = rows * row, .row = row};
}
template <class T>
kernel::StoredRows stored_rows(const T* data, Index heads, Index rows, Index row) {
  constexpr Index bytes = sizeof(T);
  return {.data = reinterpret_cast<const std::byte*>(data),
          .batch = heads * rows * row * bytes,
          .head = rows * row * bytes,
          .row = row * bytes};
}

/// Attention by the plan that fits, as scaled_dot_product_attention runs it.
template <class Q, class KV, class M>
Results<Q> attend(Isa isa, const Sizes& n, const Operands<Q, KV>& in, const M& mask, const attn::DropoutRule& dropout) {
  const float unset = -1;
  Results<Q> out{.y = narrowed<Q>(isa, std::vector<float>(as_size(n.B * n.H * n.S * n.Dv), unset)),
                 .weights = narrowed<Q>(isa, std::vector<float>(n.weights ? as_size(n.B * n.H * n.S * n.T) : 0, unset)),
                 .log_sum_exp = std::vector<float>(as_size(n.B * n.H * n.S), unset)};
  const kernel::AttentionProblem<Q> problem{.B = n.B,
                                            .H = n.H,
                                            .G = n.G,
                                            .S = n.S,
                                            .T = n.T,
                                            .D = n.D,
                                            .Dv = n.Dv,
                                            .q = heads_of(in.q.data(), n.H, n.S, n.D),
                                            .k = stored_rows(in.k.data(), n.G, n.T, n.D + 3),
                                            .v = stored_rows(in.v.data(), n.G, n.T, n.Dv + 5),
                                            .y = heads_of(out.y.data(), n.H, n.S, n.Dv),
                                            .log_sum_exp = out.log_sum_exp.data(),
                                            .weights = n.weights ? out.weights.data() : nullptr,
                                            .scale = 0.3F,
                                            .dropout = dropout,
                                            .query_start = nullptr,
                                            .sinks = nullptr};
  const attn::NoScore score;
  const auto rules = kernel::rules_of<float>(isa, mask, score);
  const kernel::AttentionKernels<Q> kernels{.arithmetic = kernel::arithmetic_of<float>(isa),
                                            .queries = kernel::codec_of<Q>(isa),
                                            .keys = kernel::row_format_of<float, KV>(isa),
                                            .values = kernel::row_format_of<float, KV>(isa)};
  if (!kernel::DecodeTasks<Q>::fit(problem)) {
    attn::detail::run_tasks(kernel::AttentionTasks<Q>(problem, rules, kernels, attn::current_executor().concurrency()));
    return out;
  }
  kernel::DecodeTasks<Q> tasks(problem, rules, kernels);
  Index size = 1;
  for (const Index axis : tasks.partials()) size *= axis;
  attn::AlignedVector<float> partials(as_size(size));
  tasks.set_partials(partials.data());
  attn::detail::run_tasks(tasks);
  attn::AlignedVector<std::byte> scratch(as_size(tasks.scratch_size()));
  for (Index row = 0; row < n.B * n.H * n.S; ++row) tasks.join(row, attn::detail::Scratch(scratch.data()));
  return out;
}

template <class Q, class KV>
void check_attention(const Sizes& n) {
  on_every_isa([&](Isa isa) {
    const Operands<Q, KV> in{.q = random_numbers<Q>(isa, n.B * n.H * n.S * n.D, 1),
                             .k = random_numbers<KV>(isa, n.B * n.G * n.T * (n.D + 3), 2),
                             .v = random_numbers<KV>(isa, n.B * n.G * n.T * (n.Dv + 5), 3)};
    const Operands<float, float> wide{.q = widened(isa, in.q), .k = widened(isa, in.k), .v = widened(isa, in.v)};
    const auto check = [&](const auto& mask, const attn::DropoutRule& dropout) {
      const Results<Q> got = attend(isa, n, in, mask, dropout);
      const Results<float> expected = attend(isa, n, wide, mask, dropout);
      expect_same_bits(got.y, narrowed<Q>(isa, expected.y), "output");
      expect_same_bits(got.weights, narrowed<Q>(isa, expected.weights), "weights");
      expect_same_bits(got.log_sum_exp, expected.log_sum_exp, "log-sum-exp");
    };
    check(attn::NoMask{}, {});
    check(attn::SlidingWindow(40), attn::DropoutRule(0.25, 5, 1));
  });
}

constexpr Sizes prefill{.B = 2, .H = 4, .G = 2, .S = 70, .T = 150, .D = 20, .Dv = 17, .weights = true};
constexpr Sizes one_head{.B = 1, .H = 1, .G = 1, .S = 301, .T = 300, .D = 16, .Dv = 32, .weights = false};
constexpr Sizes many_keys{.B = 1, .H = 2, .G = 1, .S = 9, .T = 4200, .D = 8, .Dv = 8, .weights = false};
constexpr Sizes decode{.B = 2, .H = 6, .G = 2, .S = 1, .T = 601, .D = 20, .Dv = 17, .weights = false};
constexpr Sizes few_queries{.B = 1, .H = 2, .G = 2, .S = 4, .T = 90, .D = 16, .Dv = 16, .weights = false};

TEST(MixedAttention, FloatQueriesReadBfloat16Keys) {
  for (const Sizes& n : {prefill, one_head, many_keys}) check_attention<float, Bfloat16>(n);
}
TEST(MixedAttention, HalfQueriesReadFloatKeys) {
  for (const Sizes& n : {prefill, one_head, many_keys}) check_attention<Half, float>(n);
}
TEST(MixedDecoding, FloatQueriesReadBfloat16Keys) {
  for (const Sizes& n : {decode, few_queries}) check_attention<float, Bfloat16>(n);
}
TEST(MixedDecoding, HalfQueriesReadFloatKeys) {
  for (const Sizes& n : {decode, few_queries}) check_attention<Half, float>(n);
}

/// Attention by the formula, over numbers as they are stored.
TEST(MixedAttention, IsTheFormula) {
  for (const Sizes& n : {prefill, decode})
    on_every_isa([&](Isa isa) {
      const Operands<float, Bfloat16> in{.q = random_numbers<float>(isa, n.B * n.H * n.S * n.D, 1),
                                         .k = random_numbers<Bfloat16>(isa, n.B * n.G * n.T * (n.D + 3), 2),
                                         .v = random_numbers<Bfloat16>(isa, n.B * n.G * n.T * (n.Dv + 5), 3)};
      const auto k = widened(isa, in.k), v = widened(isa, in.v);
      const Results<float> got = attend(isa, n, in, attn::Causal{}, {});
      const double epsilon = std::numeric_limits<float>::epsilon();
      for (Index row = 0; row < n.B * n.H * n.S; ++row) {
        const Index s = row % n.S, head = row / n.S, group = head / n.H * n.G + head % n.H / (n.H / n.G);
        std::vector<double> p;
        double sum = 0, largest_score = 0, bar = 0;
        for (Index t = 0; t <= n.T - n.S + s; ++t) {
          double score = 0, size = 0;
          for (Index d = 0; d < n.D; ++d) {
            const double product =
                double{in.q[as_size(row * n.D + d)]} * double{k[as_size((group * n.T + t) * (n.D + 3) + d)]};
            score += product, size += std::abs(product);
          }
          const double scale = 0.3F;
          largest_score = std::max(largest_score, std::abs(score * scale));
          bar = std::max(bar, static_cast<double>(n.D + 1) * epsilon * size * scale);  // of a score
          p.push_back(std::exp(score * scale));
          sum += p.back();
        }
        // A weight errs by what its score does and by its exponential; their sum and the average, term by term.
        bar = 2 * (bar + (2 * largest_score + 3) * epsilon) + 2 * static_cast<double>(p.size() + 2) * epsilon;
        ASSERT_NEAR(double{got.log_sum_exp[as_size(row)]}, std::log(sum), bar + 8 * epsilon) << "row " << row;
        for (Index d = 0; d < n.Dv; ++d) {
          double y = 0, size = 0;
          for (std::size_t t = 0; t < p.size(); ++t) {
            const double value = double{v[as_size((group * n.T + static_cast<Index>(t)) * (n.Dv + 5) + d)]};
            y += p[t] / sum * value, size += p[t] / sum * std::abs(value);
          }
          ASSERT_NEAR(double{got.y[as_size(row * n.Dv + d)]}, y, bar * size) << "row " << row << ", " << d;
        }
      }
    });
}

// ---- Linear -----------------------------------------------------------------------------------------------------

constexpr Index panel = kernel::panel_width<float>;

/// A weight [in][out] as the kernel reads it.
std::vector<float> packed(const std::vector<float>& weight, Index in, Index out) {
  std::vector<float> to(as_size(attn::detail::round_up(out, panel) * in));
  for (Index i = 0; i < in; ++i)
    for (Index o = 0; o < out; ++o)
      to[as_size((o / panel * in + i) * panel + o % panel)] = weight[as_size(i * out + o)];
  return to;
}

/// y by the plan; rows of y have gaps between them, which stay as they are. W is float or a format that is stored.
template <class X, class W>
std::vector<X> apply(Isa isa, Index rows, Index in, Index out, const std::vector<X>& x, const std::vector<W>& weight,
                     const std::vector<X>& bias) {
  Fenced<X> y(rows, out, out + 2);
  const kernel::LinearProblem<X> problem{.x = x.data(),
                                         .bias = bias.empty() ? nullptr : bias.data(),
                                         .y = y.data(),
                                         .rows = rows,
                                         .in = in,
                                         .out = out,
                                         .x_row = in + 3,
                                         .y_row = y.stride()};
  const kernel::LinearKernels<X> kernels{.arithmetic = kernel::arithmetic_of<float>(isa),
                                         .inputs = kernel::codec_of<X>(isa)};
  const auto run = [&]<class Panels>(const Panels& panels) {
    attn::detail::run_tasks(
        kernel::LinearTasks<X, Panels>(problem, kernels, panels, attn::current_executor().concurrency()));
  };
  if constexpr (std::is_same_v<W, float>)
    run(kernel::PlainPanels<float>{.weight = weight.data(), .in = in});
  else
    run(kernel::StoredPanels{.reader = kernel::weight_reader_of<W>(isa),
                             .first = {.values = reinterpret_cast<const std::byte*>(weight.data())},
                             .in = in});
  EXPECT_TRUE(y.intact()) << "something was written between rows of y";
  std::vector<X> all;
  for (Index r = 0; r < rows; ++r) all.insert(all.end(), &y(r, 0), &y(r, 0) + out);
  return all;
}

template <class X, class W>
void check_linear(Index rows, Index in, Index out, bool has_bias) {
  SCOPED_TRACE(testing::Message() << rows << " rows, " << in << " to " << out);
  on_every_isa([&](Isa isa) {
    const auto x = random_numbers<X>(isa, rows * (in + 3), 1);
    const auto plain = widened(isa, random_numbers<W>(isa, in * out, 2));
    const auto weight = narrowed<W>(isa, packed(plain, in, out));
    const auto bias = random_numbers<X>(isa, has_bias ? out : 0, 3);
    const auto got = apply(isa, rows, in, out, x, weight, bias);
    const auto expected = apply(isa, rows, in, out, widened(isa, x), widened(isa, weight), widened(isa, bias));
    expect_same_bits(got, narrowed<X>(isa, expected), "output");

    const auto wide_x = widened(isa, x), wide_bias = widened(isa, bias), wide_y = widened(isa, got);
    const double epsilon = std::numeric_limits<float>::epsilon();
    const double storage_error = std::is_same_v<X, Bfloat16> ? 0x1p-8 : 0;
    for (Index r = 0; r < rows; ++r)
      for (Index o = 0; o < out; ++o) {
        double sum = has_bias ? double{wide_bias[as_size(o)]} : 0, size = std::abs(sum);
        for (Index i = 0; i < in; ++i) {
          const double product = double{wide_x[as_size(r * (in + 3) + i)]} * double{plain[as_size(i * out + o)]};
          sum += product, size += std::abs(product);
        }
        const double bar = static_cast<double>(in + 1) * epsilon * size;
        ASSERT_NEAR(double{wide_y[as_size(r * out + o)]}, sum, bar + storage_error * (std::abs(sum) + bar))
            << "row " << r << ", output " << o;
      }
  });
}

template <class X, class W>
void check_linears() {
  for (const Index rows : {1, 5, 203})
    for (const Index in : {1, 37, 700})  // 700 inputs take two parts
      for (const Index out : {1, 48, 100}) check_linear<X, W>(rows, in, out, (rows + in + out) % 2 == 0);
  check_linear<X, W>(7, 64, 2 * panel, true);
}

TEST(MixedLinear, FloatInputsMeetBfloat16Weights) { check_linears<float, Bfloat16>(); }
TEST(MixedLinear, Bfloat16InputsMeetFloatWeights) { check_linears<Bfloat16, float>(); }

}  // namespace
