// safetensors files: what is written is read, to the bit; what breaks a rule of the format is refused.
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

namespace {

using attn::Index;
using attn::SafetensorsFile;
using attn::SafetensorsWriter;
using attn::Tensor;
using attn::View;
using attn_test::as_bytes;
using attn_test::refusal;
using attn_test::TemporaryFolder;

/// A file: the length of its header, the header, the data.
std::string file_of(const std::string& header, const std::string& data = {}) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(std::uint64_t{header.size()} >> (8 * i) & 0xFF);
  return bytes + header + data;
}
std::string data_of(std::initializer_list<float> numbers) {
  std::string bytes;
  for (const float number : numbers) bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
  return bytes;
}
/// The text of what is thrown when a file of these bytes is opened.
std::string refused(const std::string& bytes) {
  return refusal([&] { SafetensorsFile file(as_bytes(bytes)); });
}
bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }
#define EXPECT_REFUSED(bytes, part)                                                \
  do {                                                                             \
    const std::string text = refused(bytes);                                       \
    EXPECT_TRUE(has(text, "[attn::SafetensorsFile] ") && has(text, part)) << text; \
  } while (false)

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

TEST(Safetensors, WritesViewsOfAnyStrides) {
  const TemporaryFolder folder;
  auto x = counted<float, 3>({2, 3, 4});
  SafetensorsWriter writer;
  writer.add("turned", View<const float, 2>(x.data(), {4, 3}, {1, 4}));
  writer.write(folder.path() / "x");
  const auto turned = SafetensorsFile(folder.path() / "x").read<float, 2>("turned");
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 3; ++j) EXPECT_EQ(turned(i, j), x(0, j, i));
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

TEST(Safetensors, WritingReplacesAFileOnlyWhenItIsComplete) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("a", counted<float, 1>({3}));
  writer.write(folder.path() / "x");
  writer.add("b", counted<float, 1>({2}));
  writer.write(folder.path() / "x");
  EXPECT_EQ(SafetensorsFile(folder.path() / "x").names().size(), 2U);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()),
            1);
  EXPECT_TRUE(has(refusal([&] { writer.write(folder.path() / "none" / "x"); }), "[attn::SafetensorsWriter::write]"));
}

TEST(Safetensors, AWriterRefusesWhatItCannotName) {
  SafetensorsWriter writer;
  const auto a = counted<float, 1>({3});
  writer.add("a", a);
  for (const std::string name : {"a", "", "__metadata__"})
    EXPECT_TRUE(has(refusal([&] { writer.add(name, a); }), "[attn::SafetensorsWriter::add] name")) << name;
  EXPECT_TRUE(has(refusal([&] { writer.add_bytes("b", "F32", {3}, as_bytes("12345678")); }), "bytes"));
  EXPECT_TRUE(has(refusal([&] { writer.add_bytes("b", "F31", {3}, as_bytes("12345678")); }), "F31"));
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
  EXPECT_TRUE(has(refusal([&] { (void)file.view<float, 1>("x"); }), "aligned"));
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
  EXPECT_TRUE(has(unknown, "[attn::SafetensorsFile::tensor]") && has(unknown, "there is layer.weight")) << unknown;
  EXPECT_TRUE(has(refusal([&] { (void)file.read<float, 2>("layer.weight"); }), "expected rank 2, got [2]"));
  EXPECT_TRUE(has(refusal([&] { (void)file.view<double, 1>("layer.weight"); }), "expected elements F64, got F32"));
}

// ---- What broke other parsers -----------------------------------------------------------------------------------

std::string with_entry(const std::string& entry, const std::string& data = data_of({1, 2, 3, 4})) {
  return file_of("{\"x\":" + entry + "}", data);
}

TEST(SafetensorsAttack, AShapeWhoseProductWrapsToZero) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", ""), "memory");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", ""), "memory");
}
TEST(SafetensorsAttack, SizesThatOverflow) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,16]})"), "memory");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})"), "2^63");
}
TEST(SafetensorsAttack, AnEndBeforeItsBeginning) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})"), "end before they begin");
}
TEST(SafetensorsAttack, OffsetsThatAreNegativeOrNotIntegers) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[-16,0]})"), "negative");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16.0]})"), "not an integer");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,"16"]})"), "text");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})"), "negative");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,1e400]})"), "byte");
}
TEST(SafetensorsAttack, OffsetsThatFitTheShapeButPassTheEndOfTheFile) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})", "short"),
                 "16 bytes of data, got 5");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[16,32]})"), "without gaps");
}
TEST(SafetensorsAttack, TooFewOffsets) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0]})"), "two data_offsets");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[]})"), "two data_offsets");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16,16]})"), "two data_offsets");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4]})"), "dtype, shape and data_offsets");
}
TEST(SafetensorsAttack, AnUnknownTypeDoesNotSkipChecks) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F31","shape":[4],"data_offsets":[0,16]})"), "F31");
}
TEST(SafetensorsAttack, HeaderLengthsThatWrapOrPassTheFile) {
  std::string bytes = file_of("{}");
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = '\xFF';
  EXPECT_REFUSED(bytes, "header");
  std::string longer = file_of("{}");
  longer[0] = 3;
  EXPECT_REFUSED(longer, "header");
  std::string large = file_of(std::string(50, ' '));
  large[3] = '\x7F';  // above 100,000,000
  EXPECT_REFUSED(large, "header");
  EXPECT_REFUSED(std::string("1234567"), "8 bytes");
  EXPECT_REFUSED(std::string(), "8 bytes");
  EXPECT_REFUSED(file_of(""), "object");
}
TEST(SafetensorsAttack, AHeaderThatIsNotAnObject) {
  for (const char* header : {"[]", "3", "null", " {}", "\"x\"", "true"}) EXPECT_REFUSED(file_of(header), "header");
  for (const char* header : {"{", "{}{}", "{\"x\"}", "{,}", "{} x"}) EXPECT_REFUSED(file_of(header), "JSON");
}
TEST(SafetensorsAttack, AHeaderThatIsDeeplyNested) {
  EXPECT_REFUSED(file_of("{\"x\":" + std::string(100000, '[')), "array");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"dtype\":";
  EXPECT_REFUSED(file_of(objects), "deeper");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[[4]],"data_offsets":[0,16]})"), "array");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":{"a":4},"data_offsets":[0,16]})"), "deeper");
}
TEST(SafetensorsAttack, NamesAndFieldsThatComeTwice) {
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
                             "x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
                 "each name once");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]})"), "each field once");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":"b","a":"c"}})"), "each field once");
}
TEST(SafetensorsAttack, TensorsThatOverlapOrLeaveGaps) {
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                             "y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                         data_of({1, 2, 3})),
                 "without gaps or overlaps");
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                             "y":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                         data_of({1, 2, 3})),
                 "without gaps or overlaps");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})"), "12 bytes of data, got 16");
}
TEST(SafetensorsAttack, MetadataThatIsNotText) {
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":3}})"), "__metadata__");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":{"b":"c"}}})"), "__metadata__");
  EXPECT_REFUSED(file_of(R"({"__metadata__":"a"})"), "__metadata__");
  EXPECT_REFUSED(file_of(R"({"x":null})"), "null");
}
TEST(SafetensorsAttack, ShapesOfTooManyAxes) {
  std::string shape = "1";
  for (int i = 0; i < 100000; ++i) shape += ",1";
  EXPECT_REFUSED(with_entry("{\"dtype\":\"F32\",\"shape\":[" + shape + "],\"data_offsets\":[0,4]}"), "64 axes");
}
TEST(SafetensorsAttack, ElementsOfLessThanAByteThatDoNotFillIt) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})", "a"), "whole bytes");
}
TEST(SafetensorsAttack, AFileThatShrinksWhileMapped) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("a", counted<float, 1>({3000}));
  writer.write(folder.path() / "x");
  const SafetensorsFile file(folder.path() / "x");
  std::filesystem::resize_file(folder.path() / "x", 100);
  EXPECT_TRUE(has(refusal([&] { (void)file.read<float, 1>("a"); }), "SafetensorsFile::tensor"));
}

}  // namespace
