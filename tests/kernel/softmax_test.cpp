// The steps of the online softmax, over panels and lines of scores, and the softmax of a row, on each instruction set.
#include "support.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::Accumulators;
using attn_test::as_size;
using attn_test::Fenced;
using attn_test::Index;
using attn_test::Isa;
using attn_test::numbers_between;
using attn_test::on_every_isa;
using attn_test::same_bits;
using attn_test::Storages;
using attn_test::stored;
using attn_test::whole_numbers;

template <class A>
double epsilon() {
  return static_cast<double>(std::numeric_limits<A>::epsilon());
}

/// e^x and how far a kernel may be from it. Rounding x costs |x| / 2 epsilon, the kernel's own ln 2 less than that, and
/// the polynomial two; what is below the smallest exponent that a kernel computes may be 0.
struct Weight {
  double value, bar;
};
template <class A>
Weight weight_of(A score, A row_max) {
  if (score == kernel::masked_score<A>) return {0, 0};
  const double x = static_cast<double>(score) - static_cast<double>(row_max), value = std::exp(x);
  const double lowest = std::is_same_v<A, float> ? -87 : -708;
  return {value, (std::abs(x) + 3) * epsilon<A>() * value + (x <= lowest ? std::exp(lowest) : 0)};
}

/// An online softmax by definition, of one query, and the bar of its sum.
template <class A>
struct Query {
  A row_max = kernel::masked_score<A>;
  double sum = 0, bar = 0;

  /// Goes on by these scores and returns the factor for what came before.
  Weight step(const std::vector<A>& scores) {
    const A before = row_max;
    for (const A score : scores) row_max = std::max(row_max, score);
    const Weight factor = weight_of(before, row_max);
    bar = bar * factor.value + sum * factor.bar;
    sum *= factor.value;
    for (const A score : scores) {
      const Weight weight = weight_of(score, row_max);
      sum += weight.value, bar += weight.bar;
    }
    bar += static_cast<double>(scores.size() + 2) * epsilon<A>() * sum;
    return factor;
  }
};

/// What a softmax of panels is done with: scores[key][query], and the state of every query.
template <class A>
struct Panel {
  explicit Panel(Isa isa, Index vectors_)
      : arithmetic(kernel::arithmetic_of<A>(isa)),
        vectors(vectors_),
        queries(vectors_ * arithmetic.lanes),
        row_max(1, queries, queries),
        row_sum(1, queries, queries),
        rescale(1, queries, queries) {
    for (Index n = 0; n < queries; ++n) row_max(0, n) = kernel::masked_score<A>, row_sum(0, n) = 0;
  }
  /// One step over scores(key, query), which has room for a row past `keys` where they are odd.
  void step(Fenced<A>& scores, Index keys) {
    arithmetic.softmax_panel(scores.data(), keys, vectors, row_max.data(), row_sum.data(), rescale.data());
  }
  [[nodiscard]] Fenced<A> scores(Index keys) const {
    return Fenced<A>(keys + keys % 2, queries, arithmetic.panel_columns());
  }
  [[nodiscard]] bool intact() const { return row_max.intact() && row_sum.intact() && rescale.intact(); }

  const kernel::Arithmetic<A>& arithmetic;
  Index vectors, queries;
  Fenced<A> row_max, row_sum, rescale;
};

template <class A>
class SoftmaxPanel : public testing::Test {};
TYPED_TEST_SUITE(SoftmaxPanel, Accumulators);

/// A step over these scores [key][query] is what `expected` makes of it.
template <class A>
void check_step(Panel<A>& panel, std::vector<Query<A>>& expected, const std::vector<A>& numbers, Index keys) {
  SCOPED_TRACE(testing::Message() << keys << " keys, " << panel.vectors << " vectors");
  auto scores = panel.scores(keys);
  for (Index i = 0; i < keys * panel.queries; ++i) scores(i / panel.queries, i % panel.queries) = numbers[as_size(i)];
  panel.step(scores, keys);
  for (Index n = 0; n < panel.queries; ++n) {
    Query<A>& query = expected[as_size(n)];
    std::vector<A> column;
    for (Index t = 0; t < keys; ++t) column.push_back(numbers[as_size(t * panel.queries + n)]);
    const Weight factor = query.step(column);
    ASSERT_EQ(panel.row_max(0, n), query.row_max) << "query " << n;
    ASSERT_NEAR(static_cast<double>(panel.rescale(0, n)), factor.value, factor.bar) << "query " << n;
    ASSERT_NEAR(static_cast<double>(panel.row_sum(0, n)), query.sum, query.bar) << "query " << n;
    for (Index t = 0; t < keys; ++t) {
      const Weight weight = weight_of(column[as_size(t)], query.row_max);
      ASSERT_NEAR(static_cast<double>(scores(t, n)), weight.value, weight.bar) << "query " << n << ", key " << t;
    }
  }
  ASSERT_TRUE(scores.intact()) << "scores outside of the panel's queries were written";
  ASSERT_TRUE(panel.intact()) << "maxima, sums or factors of other queries were written";
}

TYPED_TEST(SoftmaxPanel, StepsOfAnyLengthAreTheOnlineSoftmax) {
  on_every_isa([](Isa isa) {
    for (Index vectors = 1; vectors <= 3; ++vectors) {
      Panel<TypeParam> panel(isa, vectors);
      std::vector<Query<TypeParam>> expected(as_size(panel.queries));
      unsigned seed = 1;
      for (const Index keys : {1, 2, 7, 64, 1, 33, 8})  // with larger and with smaller maxima than before
        ASSERT_NO_FATAL_FAILURE(
            check_step(panel, expected, numbers_between<TypeParam>(-30, 30, keys * panel.queries, seed++), keys));
    }
  });
}

TYPED_TEST(SoftmaxPanel, MaskedScoresWeighNothing) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    Panel<A> panel(isa, 3);
    std::vector<Query<A>> expected(as_size(panel.queries));
    for (const unsigned step : {0U, 1U, 2U, 3U}) {  // all masked; some; all again; none
      const Index keys = 5;
      auto numbers = numbers_between<A>(-3, 3, keys * panel.queries, step);
      for (Index i = 0; i < std::ssize(numbers); ++i)
        if (step % 2 == 0 || (step == 1 && i % 3 != 0)) numbers[as_size(i)] = kernel::masked_score<A>;
      ASSERT_NO_FATAL_FAILURE(check_step(panel, expected, numbers, keys));
    }
  });
}

TYPED_TEST(SoftmaxPanel, StaysZeroWhereAllKeysAreMasked) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    Panel<A> panel(isa, 2);
    for (const Index keys : {1, 2, 64}) {
      auto scores = panel.scores(keys);
      scores.fill(std::vector<A>(as_size((keys + keys % 2) * panel.queries), kernel::masked_score<A>));
      panel.step(scores, keys);
      for (Index n = 0; n < panel.queries; ++n) {
        ASSERT_EQ(panel.row_max(0, n), kernel::masked_score<A>) << n;
        ASSERT_EQ(panel.row_sum(0, n), A{0}) << n;
        for (Index t = 0; t < keys; ++t) ASSERT_EQ(scores(t, n), A{0}) << n << ", key " << t;
      }
    }
  });
}

TYPED_TEST(SoftmaxPanel, TheExtremesAreOrdinaryScores) {
  using A = TypeParam;
  const A above_masked = std::nextafter(kernel::masked_score<A>, A{0}), most = std::numeric_limits<A>::max();
  on_every_isa([=](Isa isa) {
    for (const A score : {above_masked, most}) {
      Panel<A> panel(isa, 1);
      auto scores = panel.scores(1);
      scores.fill(std::vector<A>(as_size(2 * panel.queries), score));
      panel.step(scores, 1);
      for (Index n = 0; n < panel.queries; ++n) {
        ASSERT_EQ(panel.row_max(0, n), score);
        ASSERT_EQ(panel.row_sum(0, n), A{1});
        ASSERT_EQ(panel.rescale(0, n), A{0});
        ASSERT_EQ(scores(0, n), A{1});
      }
    }
  });
}

TYPED_TEST(SoftmaxPanel, NanStaysWithItsQuery) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    for (const Index keys : {1, 4, 7}) {
      Panel<A> clean(isa, 2), panel(isa, 2);
      const auto numbers = numbers_between<A>(-5, 5, keys * panel.queries, 1);
      auto expected = clean.scores(keys), scores = panel.scores(keys);
      for (Index i = 0; i < keys * panel.queries; ++i)
        expected.data()[i / panel.queries * expected.stride() + i % panel.queries] = numbers[as_size(i)];
      for (Index i = 0; i < keys * panel.queries; ++i)
        scores(i / panel.queries, i % panel.queries) = numbers[as_size(i)];
      const Index bad = panel.queries / 2 + 1;
      scores(keys - 1, bad) = std::numeric_limits<A>::quiet_NaN();
      clean.step(expected, keys);
      panel.step(scores, keys);
      for (Index n = 0; n < panel.queries; ++n) {
        if (n == bad) {
          ASSERT_TRUE(std::isnan(panel.row_sum(0, n)));
          ASSERT_TRUE(std::isnan(scores(keys - 1, n)));
          continue;
        }
        ASSERT_TRUE(same_bits(panel.row_max(0, n), clean.row_max(0, n))) << n;
        ASSERT_TRUE(same_bits(panel.row_sum(0, n), clean.row_sum(0, n))) << n;
        for (Index t = 0; t < keys; ++t) ASSERT_TRUE(same_bits(scores(t, n), expected(t, n))) << n << ", key " << t;
      }
    }
  });
}

template <class A>
class SoftmaxLine : public testing::Test {};
TYPED_TEST_SUITE(SoftmaxLine, Accumulators);

TYPED_TEST(SoftmaxLine, StepsOfAnyLengthAreTheOnlineSoftmax) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    Query<A> expected;
    A row_max = kernel::masked_score<A>, row_sum = 0;
    for (Index keys = 1; keys <= 2 * arithmetic.lanes + 1; ++keys) {
      const auto numbers = numbers_between<A>(-20 - static_cast<double>(keys % 3), 20 + static_cast<double>(keys), keys,
                                              static_cast<unsigned>(keys));
      const Index width = arithmetic.padded(keys);
      Fenced<A> line(1, width, width);
      std::copy(numbers.begin(), numbers.end(), line.data());
      const auto factor = static_cast<double>(arithmetic.softmax_line(line.data(), keys, row_max, row_sum));
      SCOPED_TRACE(testing::Message() << keys << " keys");
      const Weight rescale = expected.step(numbers);
      ASSERT_EQ(row_max, expected.row_max);
      ASSERT_NEAR(factor, rescale.value, rescale.bar);
      ASSERT_NEAR(static_cast<double>(row_sum), expected.sum, expected.bar);
      for (Index t = 0; t < keys; ++t) {
        const Weight weight = weight_of(numbers[as_size(t)], row_max);
        ASSERT_NEAR(static_cast<double>(line(0, t)), weight.value, weight.bar) << "key " << t;
      }
      ASSERT_TRUE(line.intact()) << "something was written beyond the last vector";
    }
  });
}

TYPED_TEST(SoftmaxLine, MaskedScoresWeighNothing) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    const Index keys = arithmetic.lanes + 1;
    A row_max = kernel::masked_score<A>, row_sum = 0;
    std::vector<A> line(as_size(2 * arithmetic.lanes), kernel::masked_score<A>);
    arithmetic.softmax_line(line.data(), keys, row_max, row_sum);
    for (Index t = 0; t < keys; ++t) ASSERT_EQ(line[as_size(t)], A{0}) << "key " << t;
    ASSERT_EQ(row_max, kernel::masked_score<A>);
    ASSERT_EQ(row_sum, A{0});

    line.assign(line.size(), kernel::masked_score<A>);
    line[as_size(keys - 1)] = A{-7};
    ASSERT_EQ(arithmetic.softmax_line(line.data(), keys, row_max, row_sum), A{0});
    for (Index t = 0; t < keys; ++t) ASSERT_EQ(line[as_size(t)], t == keys - 1 ? A{1} : A{0}) << "key " << t;
    ASSERT_EQ(row_max, A{-7});
    ASSERT_EQ(row_sum, A{1});

    line.assign(line.size(), kernel::masked_score<A>);
    ASSERT_EQ(arithmetic.softmax_line(line.data(), keys, row_max, row_sum), A{1});
    ASSERT_EQ(row_max, A{-7});
    ASSERT_EQ(row_sum, A{1});
  });
}

TYPED_TEST(SoftmaxLine, NanAnywhereMakesTheSumNan) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    const Index keys = arithmetic.lanes + 3;
    for (Index bad = 0; bad < keys; ++bad) {
      std::vector<A> line(as_size(arithmetic.padded(keys)), A{1});
      line[as_size(bad)] = std::numeric_limits<A>::quiet_NaN();
      A row_max = kernel::masked_score<A>, row_sum = 0;
      arithmetic.softmax_line(line.data(), keys, row_max, row_sum);
      ASSERT_TRUE(std::isnan(row_sum)) << bad;
    }
  });
}

template <class Storage>
class SoftmaxRow : public testing::Test {};
TYPED_TEST_SUITE(SoftmaxRow, Storages);

/// The row as the accumulator sees it.
template <class Storage>
std::vector<kernel::AccumulatorOf<Storage>> loaded(Isa isa, const std::vector<Storage>& x) {
  std::vector<kernel::AccumulatorOf<Storage>> y(x.size());
  kernel::codec_of<Storage>(isa).load(y.data(), std::ssize(x), x.data(), std::ssize(x), 1, std::ssize(x));
  return y;
}
/// What rounding to a stored type adds, relative to the number, and the smallest step.
template <class Storage>
constexpr double storage_error = std::is_same_v<Storage, kernel::Half>       ? 0x1p-11
                                 : std::is_same_v<Storage, kernel::Bfloat16> ? 0x1p-8
                                                                             : 0.0;
template <class Storage>
constexpr double smallest_step = std::is_same_v<Storage, kernel::Half> ? 0x1p-24 : 0.0;

TYPED_TEST(SoftmaxRow, IsTheFormulaForEveryLength) {
  using A = kernel::AccumulatorOf<TypeParam>;
  on_every_isa([](Isa isa) {
    for (const Index n : {1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 1024, 1025, 2100}) {
      SCOPED_TRACE(testing::Message() << "row of " << n);
      const auto x = stored<TypeParam>(whole_numbers<double>(n, static_cast<unsigned>(n)));
      const auto scores = loaded(isa, x);
      const Index width = kernel::arithmetic_of<A>(isa).padded(n);
      Fenced<TypeParam> y(1, n, n);
      Fenced<A> scratch(1, width, width);
      kernel::softmax_row_of<TypeParam>(isa)(x.data(), y.data(), n, scratch.data());
      Query<A> row;
      row.step(scores);
      // A lane adds up at most 64 numbers at a time, and these parts without a loss; then come the lanes.
      double sum_bar = 64 + 16;
      sum_bar *= epsilon<A>();
      for (const A score : scores) sum_bar += weight_of(score, row.row_max).bar / row.sum;
      std::vector<TypeParam> result(y.data(), y.data() + n);
      const auto p = loaded(isa, result);
      for (Index i = 0; i < n; ++i) {
        const Weight weight = weight_of(scores[as_size(i)], row.row_max);
        const double expected = weight.value / row.sum;
        const double bar = weight.bar / row.sum + expected * (sum_bar + epsilon<A>() +
                                                              1.01 * storage_error<TypeParam>)+smallest_step<TypeParam>;
        ASSERT_NEAR(static_cast<double>(p[as_size(i)]), expected, bar) << i;
      }
      ASSERT_TRUE(y.intact());
      ASSERT_TRUE(scratch.intact());
    }
  });
}

TYPED_TEST(SoftmaxRow, InPlaceGivesTheSameBits) {
  using A = kernel::AccumulatorOf<TypeParam>;
  on_every_isa([](Isa isa) {
    const Index n = 37;
    auto x = stored<TypeParam>(whole_numbers<double>(n, 1));
    std::vector<TypeParam> y(as_size(n));
    std::vector<A> scratch(as_size(kernel::arithmetic_of<A>(isa).padded(n)));
    kernel::softmax_row_of<TypeParam>(isa)(x.data(), y.data(), n, scratch.data());
    kernel::softmax_row_of<TypeParam>(isa)(x.data(), x.data(), n, scratch.data());
    for (Index i = 0; i < n; ++i) ASSERT_TRUE(same_bits(x[as_size(i)], y[as_size(i)])) << i;
  });
}

TEST(SoftmaxRowExtremes, MinusInfinityWeighsNothing) {
  const float never = -std::numeric_limits<float>::infinity();
  on_every_isa([=](Isa isa) {
    std::vector<float> x(19, never), scratch(32);
    kernel::softmax_row_of<float>(isa)(x.data(), x.data(), 19, scratch.data());
    for (const float p : x) ASSERT_EQ(p, 0.F);
    x.assign(19, never);
    x[3] = x[18] = kernel::masked_score<float>;  // a number like any other
    kernel::softmax_row_of<float>(isa)(x.data(), x.data(), 19, scratch.data());
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(x[i], i == 3 || i == 18 ? 0.5F : 0.F) << i;
  });
}

}  // namespace
