// Reading safetensors files. What breaks a rule of the format is in safetensors_header_test.cpp.
#include <attn/io/safetensors.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "file_support.hpp"
#include "safetensors_support.hpp"

namespace {

using attn::Index;
using attn::SafetensorsFile;
using attn::SafetensorsWriter;
using attn::Tensor;
using attn::View;
using attn_test::as_bytes;
using attn_test::data_of;
using attn_test::file_of;
using attn_test::refusal;
using attn_test::TemporaryFolder;

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }
template <class T, int Rank>
Tensor<T, Rank> counted(const std::array<Index, std::size_t{Rank}>& shape) {
  auto x = attn::detail::make_tensor<T, Rank>(shape);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(0.37F * static_cast<float>(i) - 2.F);
  return x;
}
template <class X, class Y>
bool same_bytes(const X& x, const Y& y) {
  return x.size() == y.size() && std::memcmp(static_cast<const void*>(x.data()), static_cast<const void*>(y.data()),
                                             static_cast<std::size_t>(x.size()) * sizeof *x.data()) == 0;
}

// ---- Round trips ------------------------------------------------------------------------------------------------

TEST(Safetensors, GivesBackWhatWasWritten) {
  const TemporaryFolder folder;
  const auto a = counted<float, 2>({3, 5});
  const auto b = counted<double, 1>({7});
  const auto c = counted<Eigen::half, 3>({2, 3, 1});
  const auto d = counted<Eigen::bfloat16, 4>({1, 2, 1, 3});
  SafetensorsWriter writer;
  writer.add("a", a), writer.add("b.weight", b), writer.add("c", c), writer.add("d", d);
  writer.set_metadata("format", "pt");
  writer.write(folder.path() / "x.safetensors");

  const SafetensorsFile file(folder.path() / "x.safetensors");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b.weight", "c", "d"}));
  EXPECT_TRUE(file.contains("c"));
  EXPECT_FALSE(file.contains("e"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensor("c").dtype, "F16");
  EXPECT_EQ(file.tensor("d").shape, (std::vector<Index>{1, 2, 1, 3}));
  EXPECT_TRUE(same_bytes((file.read<float, 2>("a")), a));
  EXPECT_TRUE(same_bytes((file.read<double, 1>("b.weight")), b));
  EXPECT_TRUE(same_bytes((file.read<Eigen::half, 3>("c")), c));
  EXPECT_TRUE(same_bytes((file.read<Eigen::bfloat16, 4>("d")), d));
  EXPECT_TRUE(same_bytes((file.view<float, 2>("a")), a));
  EXPECT_TRUE(same_bytes((file.view<double, 1>("b.weight")), b)) << "the widest elements come first: all are aligned";
  EXPECT_TRUE(same_bytes((file.view<Eigen::half, 3>("c")), c));
}

TEST(Safetensors, ViewsOutliveTheObjectOfWhichACopyLives) {
  const TemporaryFolder folder;
  const auto a = counted<float, 2>({3, 5});
  SafetensorsWriter writer;
  writer.add("a", a);
  writer.write(folder.path() / "x");
  auto first = std::make_unique<SafetensorsFile>(folder.path() / "x");
  const SafetensorsFile copy = *first;
  const auto view = first->view<float, 2>("a");
  first.reset();
  EXPECT_TRUE(same_bytes(view, a));
}

// ---- What others write ------------------------------------------------------------------------------------------

TEST(Safetensors, ReadsAFileWrittenByHand) {
  const std::string bytes =
      file_of(R"({"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"by":"hand"}}   )",
              data_of({1, 2, 3, 4.5F}));
  const SafetensorsFile file(as_bytes(bytes));
  const auto x = file.read<float, 2>("x");
  EXPECT_EQ(x(0, 1), 2.F);
  EXPECT_EQ(x(1, 1), 4.5F);
  EXPECT_EQ(file.metadata().at("by"), "hand");
}

TEST(Safetensors, TakesEmptyTensorsAndSingleNumbers) {
  const std::string bytes = file_of(R"({"none":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]},
    "one":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"end":{"dtype":"F64","shape":[0],"data_offsets":[4,4]}})",
                                    data_of({7}));
  const SafetensorsFile file(as_bytes(bytes));
  EXPECT_EQ((file.read<float, 2>("none").size()), 0);
  EXPECT_EQ((file.read<float, 2>("none").dimension(0)), 3);
  EXPECT_EQ((file.read<float, 0>("one")()), 7.F);
  EXPECT_EQ((file.read<double, 1>("end").size()), 0);
  EXPECT_TRUE(SafetensorsFile(as_bytes(file_of("{}"))).names().empty());
}

TEST(Safetensors, CopiesWhatIsNotAligned) {
  std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  while ((header.size() + 8) % 4 != 1) header += ' ';
  const std::string bytes = file_of(header, data_of({1.5F, -2}));
  std::vector<float> aligned(bytes.size() / 4 + 2);
  std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const SafetensorsFile file(std::as_bytes(std::span(aligned)).first(bytes.size()));
  EXPECT_TRUE(has(refusal([&] { (void)file.view<float, 1>("x"); }), "aligned to 4 bytes"));
  EXPECT_TRUE(has(refusal([&] { (void)file.view<float, 1>("x"); }), "read() copies"));
  EXPECT_EQ((file.read<float, 1>("x")(1)), -2.F);
}

TEST(Safetensors, ReadsEveryTypeOfNumber) {
  const auto check = [](const std::string& dtype, const auto& numbers) {
    using From = std::remove_cvref_t<decltype(numbers[0])>;
    const std::string data(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(From));
    const std::string bytes =
        file_of("{\"x\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + std::to_string(numbers.size()) +
                    "],\"data_offsets\":[0," + std::to_string(data.size()) + "]}}",
                data);
    const SafetensorsFile file(as_bytes(bytes));
    const auto as_double = file.read<double, 1>("x");
    const auto as_float = file.read<float, 1>("x");
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      EXPECT_EQ(as_double(static_cast<Index>(i)), static_cast<double>(numbers[i])) << dtype;
      EXPECT_EQ(as_float(static_cast<Index>(i)), static_cast<float>(numbers[i])) << dtype;
    }
  };
  check("F64", std::array<double, 2>{0.1, -3e30});
  check("F32", std::array<float, 2>{0.1F, -3e30F});
  check("F16", std::array<Eigen::half, 2>{Eigen::half(0.1F), Eigen::half(-60000.F)});
  check("BF16", std::array<Eigen::bfloat16, 2>{Eigen::bfloat16(0.1F), Eigen::bfloat16(-3e30F)});
  check("I64", std::array<std::int64_t, 2>{123456789012345, -5});
  check("U64", std::array<std::uint64_t, 2>{123456789012345, 5});
  check("I32", std::array<std::int32_t, 2>{123456789, -5});
  check("U32", std::array<std::uint32_t, 2>{4123456789U, 5});
  check("I16", std::array<std::int16_t, 2>{12345, -5});
  check("U16", std::array<std::uint16_t, 2>{65535, 5});
  check("I8", std::array<std::int8_t, 2>{127, -128});
  check("U8", std::array<std::uint8_t, 2>{255, 0});
  check("BOOL", std::array<std::uint8_t, 2>{1, 0});
}

TEST(Safetensors, RoundsOnceToNearestTiesToEven) {
  // Above a tie between two numbers of 8 bits by less than a float can tell: rounding to float first would lose it.
  const std::array<double, 4> numbers{1.0 + 0x1p-8 + 0x1p-40, 1.0 + 0x1p-8, 1.0 + 3 * 0x1p-8,
                                      -(1.0 + 0x1p-8 + 0x1p-40)};
  const std::string data(reinterpret_cast<const char*>(numbers.data()), sizeof numbers);
  const std::string bytes = file_of(R"({"x":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}})", data);
  const auto x = SafetensorsFile(as_bytes(bytes)).read<Eigen::bfloat16, 1>("x");
  EXPECT_EQ(static_cast<float>(x(0)), 1.F + 0x1p-7F);
  EXPECT_EQ(static_cast<float>(x(1)), 1.F);
  EXPECT_EQ(static_cast<float>(x(2)), 1.F + 0x1p-6F);
  EXPECT_EQ(static_cast<float>(x(3)), -(1.F + 0x1p-7F));
  const std::array<double, 3> special{std::nan(""), std::numeric_limits<double>::infinity(), 1e300};
  const std::string more(reinterpret_cast<const char*>(special.data()), sizeof special);
  const std::string of_special = file_of(R"({"x":{"dtype":"F64","shape":[3],"data_offsets":[0,24]}})", more);
  const auto y = SafetensorsFile(as_bytes(of_special)).read<Eigen::half, 1>("x");
  EXPECT_TRUE(std::isnan(static_cast<float>(y(0))));
  EXPECT_TRUE(std::isinf(static_cast<float>(y(1))));
  EXPECT_TRUE(std::isinf(static_cast<float>(y(2))));
}

TEST(Safetensors, ListsTypesThatItDoesNotRead) {
  const std::string bytes = file_of(
      R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F4","shape":[4],"data_offsets":[2,4]}})",
      "abcd");
  const SafetensorsFile file(as_bytes(bytes));
  EXPECT_EQ(file.tensor("b").bytes.size(), 2U);
  EXPECT_TRUE(has(refusal([&] { (void)file.read<float, 1>("a"); }), "F8_E4M3"));
}

TEST(Safetensors, RefusesWhatATensorIsNot) {
  const std::string bytes =
      file_of(R"({"layer.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", data_of({1, 2}));
  const SafetensorsFile file(as_bytes(bytes));
  const std::string unknown = refusal([&] { (void)file.read<float, 1>("model.layer.weight"); });
  EXPECT_TRUE(has(unknown, "[attn::SafetensorsFile::read] file in memory") &&
              has(unknown, "'model.layer.weight'; there is 'layer.weight'"))
      << unknown;
  EXPECT_TRUE(has(refusal([&] { (void)file.read<float, 2>("layer.weight"); }), "expected rank 2, got [2]"));
  EXPECT_TRUE(has(refusal([&] { (void)file.view<double, 1>("layer.weight"); }),
                  "tensor 'layer.weight', expected F64, got F32; read() converts"));
}

TEST(Safetensors, NamesTheFileAndWhatIsNear) {
  const TemporaryFolder folder;
  const auto path = folder.write("model-00001.safetensors",
                                 file_of(R"({"layers.0.q.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                                             "layers.0.k.weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                         data_of({1, 2})));
  const SafetensorsFile file(path);
  const std::string typo = refusal([&] { (void)file.tensor("layrs.0.k.weight"); });
  EXPECT_TRUE(has(typo, "[attn::SafetensorsFile::tensor] file " + path.string())) << typo;
  EXPECT_TRUE(has(typo, "there is 'layers.0.k.weight'")) << typo;
  EXPECT_FALSE(has(refusal([&] { (void)file.tensor("embedding"); }), "there is"));
  EXPECT_FALSE(has(refusal([&] { (void)file.tensor(""); }), "there is"));
}

TEST(Safetensors, LongNamesAndControlCharactersAreShownCut) {
  const std::string bytes = file_of("{}");
  const SafetensorsFile file(as_bytes(bytes));
  const std::string text = refusal([&] { (void)file.tensor("a\n\x1B[2J" + std::string(100000, 'n')); });
  EXPECT_LT(text.size(), 300U);
  EXPECT_TRUE(has(text, "'a??[2J")) << text;
}

TEST(Safetensors, AViewLiesInTheFile) {
  const TemporaryFolder folder;
  const auto path =
      folder.write("x", file_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  )", data_of({1.5F, -2})));
  const SafetensorsFile file(path);
  const auto view = file.view<float, 1>("x");
  EXPECT_EQ(static_cast<const void*>(view.data()), static_cast<const void*>(file.tensor("x").bytes.data()));
  EXPECT_EQ(view(1), -2.F);
}

TEST(Safetensors, AnEmptyViewNeedsNoAlignment) {
  for (const char* padding : {"", " ", "  ", "   "}) {
    const std::string bytes =
        file_of(R"({"x":{"dtype":"F64","shape":[2,0],"data_offsets":[0,0]}})" + std::string(padding));
    const SafetensorsFile file(as_bytes(bytes));
    EXPECT_EQ((file.view<double, 2>("x").dimension(0)), 2);
  }
}

TEST(Safetensors, AnyByteButZeroIsTrue) {
  const std::string bytes =
      file_of(R"({"x":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})", std::string("\0\1\xFF", 3));
  const auto x = SafetensorsFile(as_bytes(bytes)).read<Eigen::half, 1>("x");
  EXPECT_EQ(static_cast<float>(x(0)), 0.F);
  EXPECT_EQ(static_cast<float>(x(1)), 1.F);
  EXPECT_EQ(static_cast<float>(x(2)), 1.F);
}

TEST(Safetensors, AFileThatShrinksWhileMapped) {
#if __has_include(<sys/mman.h>)
  const TemporaryFolder folder;
  const auto path = folder.write(
      "x", file_of(R"({"x":{"dtype":"F32","shape":[3000],"data_offsets":[0,12000]}})", std::string(12000, 'x')));
  const SafetensorsFile file(path);
  std::filesystem::resize_file(path, 100);
  EXPECT_TRUE(has(refusal([&] { (void)file.tensor("x"); }), "[attn::SafetensorsFile::tensor] file " + path.string()));
  EXPECT_TRUE(has(refusal([&] { (void)file.read<float, 1>("x"); }), "[attn::SafetensorsFile::read]"));
  EXPECT_TRUE(has(refusal([&] { (void)file.view<float, 1>("x"); }), "[attn::SafetensorsFile::view]"));
#else
  GTEST_SKIP() << "files are read as a whole on this system";
#endif
}

}  // namespace
