// Headers of safetensors files: what breaks a rule of the format is refused, and what attacked other parsers.
#include <attn/io/safetensors_header.hpp>

#include <gtest/gtest.h>

#include <string>

#include "file_support.hpp"
#include "safetensors_support.hpp"

namespace {

using attn_test::as_bytes;
using attn_test::data_of;
using attn_test::file_of;
using attn_test::refusal;

attn::detail::SafetensorsHeader header_of(const std::string& bytes) {
  return attn::detail::read_safetensors_header("file x", as_bytes(bytes));
}
/// The text of what is thrown when a file of these bytes is opened.
std::string refused(const std::string& bytes) {
  return refusal([&] { (void)header_of(bytes); });
}
bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }
#define EXPECT_REFUSED(bytes, part)                                                        \
  do {                                                                                     \
    const std::string text = refused(bytes);                                               \
    EXPECT_TRUE(has(text, "[attn::SafetensorsFile] file x, ") && has(text, part)) << text; \
  } while (false)

// ---- What broke other parsers -----------------------------------------------------------------------------------

std::string with_entry(const std::string& entry, const std::string& data = data_of({1, 2, 3, 4})) {
  return file_of("{\"x\":" + entry + "}", data);
}

TEST(SafetensorsHeader, AShapeWhoseProductWrapsToZero) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", ""), "memory");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", ""), "memory");
}
TEST(SafetensorsHeader, SizesThatOverflow) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,16]})"), "memory");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})"),
                 "memory can hold");
}
TEST(SafetensorsHeader, AnEndBeforeItsBeginning) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})"),
                 "not before the beginning, got 16 and 0");
}
TEST(SafetensorsHeader, OffsetsThatAreNegativeOrNotIntegers) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[-16,0]})"), "negative");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16.0]})"), "no integer");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,"16"]})"), "a string");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})"), "negative");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,1e400]})"), "byte");
}
TEST(SafetensorsHeader, OffsetsThatFitTheShapeButPassTheEndOfTheFile) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})", "short"),
                 "within 5 bytes of data, got 16");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[16,32]})"),
                 "within 16 bytes of data, got 32");
}
TEST(SafetensorsHeader, TooFewOffsets) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0]})"), "expected [begin, end], got fewer");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[]})"), "expected [begin, end], got fewer");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16,16]})"),
                 "expected [begin, end], got more");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4]})"), "dtype, shape and data_offsets");
}
TEST(SafetensorsHeader, AnUnknownTypeDoesNotSkipChecks) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F31","shape":[4],"data_offsets":[0,16]})"), "F31");
}
TEST(SafetensorsHeader, HeaderLengthsThatWrapOrPassTheFile) {
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
TEST(SafetensorsHeader, AHeaderThatIsNotAnObject) {
  for (const char* header : {"[]", "3", "null", " {}", "\"x\"", "true"}) EXPECT_REFUSED(file_of(header), "header");
  for (const char* header : {"{", "{}{}", "{\"x\"}", "{,}", "{} x"}) EXPECT_REFUSED(file_of(header), "JSON");
}
TEST(SafetensorsHeader, AHeaderThatIsDeeplyNested) {
  EXPECT_REFUSED(file_of("{\"x\":" + std::string(100000, '[')), "array");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"dtype\":";
  EXPECT_REFUSED(file_of(objects), "got an object");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[[4]],"data_offsets":[0,16]})"), "array");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":{"a":4},"data_offsets":[0,16]})"), "got an object");
}
TEST(SafetensorsHeader, NamesAndFieldsThatComeTwice) {
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
                             "x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
                 "each name once");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]})"), "each key once");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":"b","a":"c"}})"), "each key once");
}
TEST(SafetensorsHeader, TensorsThatOverlapOrLeaveGaps) {
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                             "y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                         data_of({1, 2, 3})),
                 "without gaps or overlaps");
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                             "y":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                         data_of({1, 2, 3})),
                 "without gaps or overlaps");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})"),
                 "expected 12 bytes of data, as the tensors take, got 16");
}
TEST(SafetensorsHeader, MetadataThatIsNotText) {
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":3}})"), "__metadata__");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":{"b":"c"}}})"), "__metadata__");
  EXPECT_REFUSED(file_of(R"({"__metadata__":"a"})"), "__metadata__");
  EXPECT_REFUSED(file_of(R"({"x":null})"), "null");
}
TEST(SafetensorsHeader, ShapesOfTooManyAxes) {
  std::string shape = "1";
  for (int i = 0; i < 100000; ++i) shape += ",1";
  EXPECT_REFUSED(with_entry("{\"dtype\":\"F32\",\"shape\":[" + shape + "],\"data_offsets\":[0,4]}"), "64 axes");
}
TEST(SafetensorsHeader, ElementsOfLessThanAByteThatDoNotFillIt) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})", "a"), "whole bytes");
}

TEST(SafetensorsHeader, ATextAfterANulIsNotHidden) {
  EXPECT_REFUSED(file_of(std::string("{}\0{\"x\":1}", 10)), "NUL at its byte 3");
  EXPECT_REFUSED(file_of(std::string("{}\0", 3)), "NUL");
  EXPECT_REFUSED(file_of(std::string("{\"a\0\":1}", 8)), "NUL");
}
TEST(SafetensorsHeader, TextThatIsNotUtf8) {
  EXPECT_REFUSED(file_of("{\"\xFF\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"), "UTF-8");
  EXPECT_REFUSED(file_of("{\"__metadata__\":{\"a\":\"\xC0\x80\"}}"), "UTF-8");
}
TEST(SafetensorsHeader, NamesThatAreEqualWhenEscapesAreRead) {
  EXPECT_REFUSED(file_of(R"({"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
                             "\u0078":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
                 "tensor 'x', expected each name once");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ once");
}
TEST(SafetensorsHeader, KeysThatTheFormatDoesNotHave) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16],"strides":[1]})"), "got 'strides'");
}
TEST(SafetensorsHeader, SizesWhoseProductOverflowsBesideAZero) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})", ""), "memory");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]})", ""), "memory");
}
TEST(SafetensorsHeader, ShapesLargerThanTheirData) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[5],"data_offsets":[0,16]})"),
                 "expected 20 bytes for [5] of F32");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})"),
                 "expected 12 bytes for [3] of F32");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F64","shape":[],"data_offsets":[0,4]})", "abcd"), "expected 8 bytes for []");
}
TEST(SafetensorsHeader, OffsetsNearTheLargestInteger) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,0]})", ""), "beginning");
  EXPECT_REFUSED(with_entry(R"({"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]})"),
                 "within 16 bytes of data, got 18446744073709551615");
  EXPECT_REFUSED(with_entry(R"({"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]})"), "no integer");
}
TEST(SafetensorsHeader, IntegersWrittenAsOtherNumbers) {
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[-0],"data_offsets":[0,0]})", ""), "negative");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[4e0],"data_offsets":[0,16]})"), "no integer");
  EXPECT_REFUSED(with_entry(R"({"dtype":"F32","shape":[04],"data_offsets":[0,16]})"), "JSON");
}
TEST(SafetensorsHeader, ValuesThatAreNoTensors) {
  for (const char* value : {"3", "\"F32\"", "[0,16]", "true", "{}", "[]"})
    EXPECT_REFUSED(file_of("{\"x\":" + std::string(value) + "}"), "tensor 'x', expected");
}

// ---- What is legal ----------------------------------------------------------------------------------------------

TEST(SafetensorsHeader, TakesSpacesAtTheEndAndBetween) {
  EXPECT_EQ(header_of(file_of("{}" + std::string(5000, ' '))).data, 5010U);
  EXPECT_EQ(header_of(file_of("{ \n\t}\n")).tensors.size(), 0U);
}
TEST(SafetensorsHeader, TakesTensorsInAnyOrderOfNamesAndOffsets) {
  const auto header =
      header_of(file_of(R"({"b":{"data_offsets":[4,8],"shape":[1],"dtype":"F32"},"__metadata__":{"k":"v"},
      "c":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},"a":{"shape":[1],"dtype":"F32","data_offsets":[0,4]}})",
                        data_of({1, 2})));
  EXPECT_EQ(header.tensors.size(), 3U);
  EXPECT_EQ(header.tensors.find("b")->second.begin, 4U);
  EXPECT_EQ(header.metadata.at("k"), "v");
}
TEST(SafetensorsHeader, TakesNamesOfAnyCharacters) {
  const auto header = header_of(file_of(R"({"":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
      "\u00e4\n\"\\":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
      "a\u0000b":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"));
  EXPECT_TRUE(header.tensors.contains(""));
  EXPECT_TRUE(header.tensors.contains("\xC3\xA4\n\"\\"));
  EXPECT_TRUE(header.tensors.contains(std::string("a\0b", 3)));
}
TEST(SafetensorsHeader, KnowsEveryTypeOfTheFormat) {
  for (const auto& [dtype, bits] : std::initializer_list<std::pair<const char*, int>>{
           {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},   {"I8", 8},
           {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"I16", 16}, {"F8_E5M2FNUZ", 8},
           {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32}, {"F32", 32},
           {"F64", 64},    {"I64", 64},    {"U64", 64},    {"C64", 64}}) {
    const std::string bytes = std::to_string(bits), entry = "{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":[8],";
    EXPECT_NO_THROW((void)header_of(
        with_entry(entry + "\"data_offsets\":[0," + bytes + "]}", std::string(static_cast<std::size_t>(bits), 'x'))))
        << dtype;
    EXPECT_REFUSED(with_entry(entry + "\"data_offsets\":[0,3]}", "abc"), "expected " + bytes + " bytes for [8]");
  }
}

}  // namespace
