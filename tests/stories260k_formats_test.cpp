// stories260K with weights and caches in fewer bits: the stories it tells, and how much those of float surprise it.
#include "llama2c_support.hpp"

namespace {

using namespace attn_test::llama2c;
using attn::CacheFormat;
using attn::WeightFormat;

class Stories260KFormats : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(folder / "checkpoint_legacy.bin"))
      GTEST_SKIP() << "stories260K is not at hand: no " << folder / "checkpoint_legacy.bin";
  }
  [[nodiscard]] static Llama model(WeightFormat weights, CacheFormat cache = CacheFormat::native) {
    Llama llama = load_checkpoint(folder / "checkpoint_legacy.bin", RotaryLayout::interleaved);
    llama.store_weights(weights);
    llama.cache_format = cache;
    return llama;
  }
  [[nodiscard]] static Tokenizer tokenizer() { return Tokenizer(folder / "tokenizer.bin"); }
  [[nodiscard]] static std::string story(const Llama& llama, const Sampler& sampler) {
    return text_of(llama, tokenizer(), sampler, 256);
  }
  /// The bits by which four stories of 256 tokens, drawn from the model in float at temperature 1, surprise a model, a token in
  /// the mean. Each token is read through the cache, as when writing.
  [[nodiscard]] static double cross_entropy(const Llama& llama) {
    static const std::vector<std::string> stories = [] {
      const Llama in_float = model(WeightFormat::native);
      std::vector<std::string> all;
      for (const std::uint64_t seed : {42U, 1U, 2U, 3U}) all.push_back(story(in_float, Sampler(1.0F, 1.0F, seed)));
      return all;
    }();
    double sum = 0, tokens_read = 0;
    for (const std::string& text : stories) {
      const Tokens tokens = tokenizer().encode(text);
      const Tensor<float, 3> logits = one_by_one(llama, tokens);
      const Index V = logits.dimension(2);
      for (Index s = 0; s + 1 < std::ssize(tokens); ++s, ++tokens_read) {
        const float* const row = &logits(0, s, 0);
        const double largest = double{*std::max_element(row, row + V)};
        double exponentials = 0;
        for (Index v = 0; v < V; ++v) exponentials += std::exp(double{row[v]} - largest);
        sum += std::log(exponentials) + largest - double{row[tokens[static_cast<std::size_t>(s) + 1]]};
      }
    }
    return sum / tokens_read / std::log(2.0);
  }
  /// How much more the stories surprise in a format, relative to float. Prints it for the guide's table, with how many tokens
  /// of its greedy story are those that float tells first.
  [[nodiscard]] static double surprise(const Llama& llama, const std::string& name) {
    static const Llama in_float = model(WeightFormat::native);
    static const double least = cross_entropy(in_float);
    static const Tokens expected = tokenizer().encode(story(in_float, Sampler(0.0F)));
    const double more = cross_entropy(llama) / least - 1;
    const Tokens told = tokenizer().encode(story(llama, Sampler(0.0F)));
    const auto same = std::mismatch(told.begin(), told.end(), expected.begin(), expected.end()).first - told.begin();
    std::printf("%-22s cross-entropy %+.2f %%, the first %td of %td tokens the same\n", name.c_str(), 100 * more, same,
                std::ssize(expected));
    return more;
  }
  static void expect_surprise(WeightFormat weights, CacheFormat cache, double most) {
    const std::string name =
        "weights " + std::string(weight_format_name(weights)) + ", cache " + std::string(cache_format_name(cache));
    EXPECT_LE(surprise(model(weights, cache), name), most) << name;
  }

  inline static const std::filesystem::path folder = std::filesystem::path(ATTN_SHARED_DATA_DIR) / "stories260K";
};

TEST_F(Stories260KFormats, TellTheSameStoryInHalf) {
  const std::string expected = story(model(WeightFormat::native), Sampler(0.0F));
  EXPECT_EQ(story(model(WeightFormat::half), Sampler(0.0F)), expected);
  EXPECT_EQ(story(model(WeightFormat::native, CacheFormat::half), Sampler(0.0F)), expected);
}

TEST_F(Stories260KFormats, SurpriseLittleMoreWithWeightsInFewerBits) {
  expect_surprise(WeightFormat::bfloat16, CacheFormat::native, 0.001);
  expect_surprise(WeightFormat::half, CacheFormat::native, 0.001);
  expect_surprise(WeightFormat::int8, CacheFormat::native, 0.005);
  expect_surprise(WeightFormat::int4, CacheFormat::native, 0.10);  // 64 features leave it little to average over
}

TEST_F(Stories260KFormats, SurpriseLittleMoreFromACacheInFewerBits) {
  for (const CacheFormat format : {CacheFormat::bfloat16, CacheFormat::half})
    expect_surprise(WeightFormat::native, format, 0.001);
  expect_surprise(WeightFormat::native, CacheFormat::int8, 0.005);
  expect_surprise(WeightFormat::int8, CacheFormat::int8, 0.005);
}

}  // namespace
