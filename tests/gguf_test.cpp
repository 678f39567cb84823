// GGUF files: what they hold, and what is refused.
#include <attn/io/gguf.hpp>

#include "file_support.hpp"
#include "gguf_support.hpp"
#include "module_support.hpp"

#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace {

using attn::GgufFile;
using attn::GgufType;
using attn::Index;
using attn::Tensor;
using attn::View;
using attn_test::as_text;
using attn_test::expect_error;
using attn_test::TemporaryFolder;
using attn_test::gguf::Bytes;
using attn_test::gguf::bytes_of;
using attn_test::gguf::put;
using attn_test::gguf::put_text;
using attn_test::gguf::TensorInfo;
using attn_test::gguf::write_over;
using attn_test::gguf::Writer;

const Bytes six = bytes_of({1.F, 2.F, 3.F, 4.F, 5.F, 6.F});

/// A file with a tensor of each kind.
Writer small() {
  Writer writer;
  writer.add("general.architecture", "llama")
      .add("llama.block_count", std::uint32_t{5})
      .add("llama.rope.freq_base", 10000.F)
      .add("a.double", 0.1)
      .add("a.bool", true)
      .add("a.negative", std::int8_t{-3})
      .add("a.large", std::uint64_t{1} << 40)
      .add_array("llama.attention.head_count_kv", std::vector<std::int32_t>{4, 2, 1})
      .add_array("some.strings", std::vector<std::string>{"one", "", "three"})
      .add_array("no.strings", std::vector<std::string>{})
      .add_array("some.bools", std::vector<bool>{true, false})
      .add_tensor("weight", GgufType::f32, {2, 3}, six)
      .add_tensor("scalar", GgufType::f32, {}, bytes_of({7.F}))
      .add_tensor("halves", GgufType::f16, {3}, bytes_of<std::uint16_t>({0x3C00, 0xC000, 0x3555}))
      .add_tensor("brains", GgufType::bf16, {2}, bytes_of<std::uint16_t>({0x3F80, 0xC040}))
      .add_tensor("doubles", GgufType::f64, {1, 2}, bytes_of({0.1, -1e300}));
  return writer;
}
/// That a file is refused, with these parts in the message.
void expect_refused(const Bytes& bytes, std::initializer_list<std::string_view> parts) {
  const Bytes exact(bytes);  // its end is the end of the memory, for address sanitizers
  expect_error([&] { GgufFile{exact}; }, parts);
  expect_error([&] { GgufFile{exact}; }, {"[attn::GgufFile] ", "expected ", ", got "});
}
Bytes with_info(const TensorInfo& info, std::size_t data = 64) {
  Bytes bytes = Writer().add_info(info).bytes();
  bytes.resize(bytes.size() + data);
  return bytes;
}
constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();

// ---- What a file holds
// ------------------------------------------------------------------------------------------------

TEST(Gguf, ReadsVersionsTwoAndThree) {
  for (const std::uint32_t version : {2U, 3U}) {
    Writer writer = small();
    writer.version = version;
    const Bytes bytes = writer.bytes();
    const GgufFile file(bytes);
    EXPECT_EQ(file.version(), version);
    EXPECT_EQ(file.alignment(), 32);
    EXPECT_EQ(file.get<std::string>("general.architecture"), "llama");
    EXPECT_EQ((file.read<float, 2>("weight"))(1, 2), 6.F);
  }
}

TEST(Gguf, TurnsShapesRoundToRowMajor) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  EXPECT_EQ(file.tensor("weight").shape, (std::vector<Index>{2, 3}));
  EXPECT_EQ(file.tensor("scalar").shape, std::vector<Index>());
  const auto weight = file.read<float, 2>("weight");
  for (Index i = 0; i < 6; ++i) EXPECT_EQ(weight.data()[i], static_cast<float>(i + 1));
  EXPECT_EQ((file.read<float, 0>("scalar"))(), 7.F);
}

TEST(Gguf, ListsNamesInTheOrderOfTheFile) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  EXPECT_EQ(file.names(), (std::vector<std::string_view>{"weight", "scalar", "halves", "brains", "doubles"}));
  EXPECT_TRUE(file.contains("brains"));
  EXPECT_FALSE(file.contains("brain"));
  EXPECT_EQ(file.keys().size(), 11U);
  EXPECT_TRUE(file.has("a.bool"));
  EXPECT_FALSE(file.has("a.boo"));
}

TEST(Gguf, ReadsIntegersAsAnyTypeThatHoldsThem) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  EXPECT_EQ(file.get<std::int64_t>("llama.block_count"), 5);
  EXPECT_EQ(file.get<std::uint8_t>("llama.block_count"), 5);
  EXPECT_EQ(file.get<int>("a.negative"), -3);
  EXPECT_EQ(file.get<std::uint64_t>("a.large"), std::uint64_t{1} << 40);
  EXPECT_EQ(file.get<double>("a.large"), 0x1p40);
  expect_error([&] { (void)file.get<std::uint64_t>("a.negative"); },
               {"[attn::GgufFile::get] a.negative, expected an integer of 64 bits, unsigned, got -3"});
  expect_error([&] { (void)file.get<std::int32_t>("a.large"); }, {"integer of 32 bits, signed, got 1099511627776"});
}

TEST(Gguf, ReadsNumbersStringsAndBools) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  EXPECT_EQ(file.get<double>("llama.rope.freq_base"), 10000.0);
  EXPECT_EQ(file.get<float>("a.double"), 0.1F);
  EXPECT_EQ(file.get<double>("a.double"), 0.1);
  EXPECT_TRUE(file.get<bool>("a.bool"));
  EXPECT_EQ(file.get<std::string_view>("general.architecture"), "llama");
  EXPECT_EQ(file.get_or<int>("no.key", 17), 17);
  EXPECT_EQ(file.get_or<int>("llama.block_count", 17), 5);
}

TEST(Gguf, ReadsArrays) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  EXPECT_EQ(file.array<Index>("llama.attention.head_count_kv"), (std::vector<Index>{4, 2, 1}));
  EXPECT_EQ(file.array<std::string>("some.strings"), (std::vector<std::string>{"one", "", "three"}));
  EXPECT_EQ(file.array<bool>("some.bools"), (std::vector<bool>{true, false}));
  EXPECT_TRUE(file.array<std::string_view>("no.strings").empty());
  EXPECT_TRUE(file.is_array("some.bools"));
  EXPECT_FALSE(file.is_array("a.bool"));
  EXPECT_FALSE(file.is_array("no.key"));
}

TEST(Gguf, RefusesValuesOfAnotherKind) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  expect_error([&] { (void)file.get<int>("no.key"); },
               {"[attn::GgufFile::get] key in ", "expected one of the file's, got no.key"});
  expect_error([&] { (void)file.get<int>("a.double"); }, {"a.double, expected an integer, got one of type f64"});
  expect_error([&] { (void)file.get<double>("a.bool"); }, {"expected a number, got one of type bool"});
  expect_error([&] { (void)file.get<bool>("llama.block_count"); }, {"expected a bool, got one of type u32"});
  expect_error([&] { (void)file.get<std::string>("a.bool"); }, {"expected a string, got one of type bool"});
  expect_error([&] { (void)file.get<int>("some.strings"); }, {"expected a single value, got an array of 3"});
  expect_error([&] { (void)file.array<int>("a.negative"); }, {"expected an array, got a single value"});
  expect_error([&] { (void)file.array<int>("some.strings"); }, {"[attn::GgufFile::array]", "got one of type string"});
}

TEST(Gguf, RefusesABoolThatIsNeitherZeroNorOne) {
  const Bytes bytes = Writer().add_raw("b", 7, bytes_of<std::uint8_t>({2})).bytes();
  expect_error([&] { (void)GgufFile(bytes).get<bool>("b"); }, {"expected a bool of 0 or 1, got 2"});
}

TEST(Gguf, ConvertsBetweenTypesOfNumbers) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  const auto halves = file.read<float, 1>("halves");
  EXPECT_EQ(halves(0), 1.F);
  EXPECT_EQ(halves(1), -2.F);
  EXPECT_EQ(halves(2), 0x1.554p-2F);
  EXPECT_EQ((file.read<float, 1>("brains"))(1), -3.F);
  EXPECT_EQ((file.read<double, 2>("doubles"))(0, 0), 0.1);
  EXPECT_EQ((file.read<double, 2>("doubles"))(0, 1), -1e300);
  EXPECT_EQ((file.read<float, 2>("doubles"))(0, 0), 0.1F);
  EXPECT_EQ(static_cast<float>((file.read<Eigen::half, 2>("weight"))(1, 2)), 6.F);
  EXPECT_EQ(static_cast<float>((file.read<Eigen::bfloat16, 1>("halves"))(2)), 0x1.56p-2F);
  EXPECT_EQ((file.read<double, 1>("halves"))(2), 0x1.554p-2);
}

TEST(Gguf, ConvertsLongTensorsOnSeveralThreads) {
  std::vector<float> numbers(100'003);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 2000);
  Writer writer;
  writer.add_tensor("x", GgufType::f32, {static_cast<std::int64_t>(numbers.size())}, bytes_of(numbers));
  const Bytes bytes = writer.bytes();
  attn::ThreadPool pool(3);
  const attn::UseExecutor use(pool);
  const auto half = GgufFile(bytes).read<Eigen::half, 1>("x");
  const auto own = GgufFile(bytes).read<float, 1>("x");
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    ASSERT_EQ(static_cast<float>(half(static_cast<Index>(i))), numbers[i]) << i;
    ASSERT_EQ(own(static_cast<Index>(i)), numbers[i]) << i;
  }
}

TEST(Gguf, RefusesAnotherRankAndOtherTypes) {
  Writer writer = small();
  writer.add_tensor("integers", GgufType::i32, {1}, bytes_of({1}));
  writer.add_tensor("two_bits", GgufType::q2_k, {256}, Bytes(84));
  const Bytes bytes = writer.bytes();
  const GgufFile file(bytes);
  expect_error([&] { (void)file.read<float, 1>("weight"); },
               {"[attn::GgufFile::read] weight, expected rank 1, got [2,3]"});
  expect_error([&] { (void)file.read<float, 1>("weights"); }, {"tensor in ", "one of the file's, got weights"});
  expect_error([&] { (void)file.read<float, 1>("integers"); }, {"expected a type that attn reads, got I32"});
  expect_error([&] { (void)file.read<float, 1>("two_bits"); }, {"expected a type that attn reads, got Q2_K"});
  EXPECT_EQ(file.tensor("two_bits").bytes.size(), 84U);
}

TEST(Gguf, ViewsTensorsWhereTheyLie) {
  const Bytes bytes = small().bytes();
  const GgufFile file(bytes);
  ASSERT_EQ(reinterpret_cast<std::uintptr_t>(bytes.data()) % 8, 0U);
  const View<const float, 2> weight = file.view<float, 2>("weight");
  EXPECT_EQ(weight(1, 0), 4.F);
  EXPECT_EQ(static_cast<const void*>(weight.data()), file.tensor("weight").bytes.data());
  EXPECT_EQ(static_cast<float>((file.view<Eigen::half, 1>("halves"))(1)), -2.F);
  EXPECT_TRUE(file.has_view<float>("weight"));
  EXPECT_FALSE(file.has_view<double>("weight"));
  expect_error([&] { (void)file.view<double, 2>("weight"); },
               {"[attn::GgufFile::view] weight, expected numbers of type F64, got F32"});
}

TEST(Gguf, ReadsWhatIsNotAligned) {
  Bytes bytes = small().bytes();
  bytes.insert(bytes.begin(), std::byte{0});
  const GgufFile file(std::span<const std::byte>(bytes).subspan(1));
  EXPECT_EQ((file.read<float, 2>("weight"))(1, 2), 6.F);
  EXPECT_EQ((file.read<double, 2>("doubles"))(0, 0), 0.1);
  EXPECT_FALSE(file.has_view<float>("weight"));
  expect_error([&] { (void)file.view<float, 2>("weight"); }, {"expected bytes that are aligned to 4"});
}

TEST(Gguf, TakesAnyPowerOfTwoForTheAlignment) {
  for (const std::uint32_t alignment : {1U, 8U, 64U, 4096U}) {
    Writer writer;
    writer.alignment = alignment;
    writer.add("general.alignment", alignment)
        .add_tensor("a", GgufType::bf16, {3}, bytes_of<std::uint16_t>({1, 2, 3}))
        .add_tensor("b", GgufType::f32, {2}, bytes_of({8.F, 9.F}));
    const Bytes bytes = writer.bytes();
    const GgufFile file(bytes);
    EXPECT_EQ(file.alignment(), alignment);
    EXPECT_EQ((file.read<float, 1>("b"))(1), 9.F);
  }
}

TEST(Gguf, ReadsAFileWithoutTensors) {
  Bytes bytes = Writer().add("key", 1).bytes();
  EXPECT_TRUE(GgufFile(bytes).names().empty());
  bytes.resize(4 + 4 + 16 + 8 + 3 + 4 + 4);  // and without the padding that would come before them
  EXPECT_EQ(GgufFile(bytes).get<int>("key"), 1);
}

TEST(Gguf, TakesEmptyTensors) {
  Writer writer;
  writer.add_tensor("none", GgufType::f32, {0, 5}, {}).add_tensor("some", GgufType::f32, {1}, bytes_of({3.F}));
  writer.add_tensor("no blocks", GgufType::q8_0, {3, 0}, {});
  Bytes bytes = writer.bytes();
  bytes.resize(bytes.size() - 28);  // without the padding behind `some`
  const GgufFile file(bytes);
  EXPECT_EQ((file.read<float, 2>("none").dimension(1)), 5);
  EXPECT_EQ((file.read<float, 2>("no blocks").dimension(0)), 3);
  EXPECT_EQ((file.read<float, 1>("some"))(0), 3.F);
  EXPECT_TRUE(file.tensor("none").bytes.empty());
}

TEST(Gguf, MapsAFileAndOutlivesItsCopies) {
  const TemporaryFolder folder;
  const auto path = folder.write("small.gguf", as_text(small().bytes()));
  auto file = std::make_unique<GgufFile>(path);
  const GgufFile copy = *file;
  file.reset();
  EXPECT_EQ((copy.read<float, 2>("weight"))(1, 2), 6.F);
  EXPECT_EQ(copy.get<int>("llama.block_count"), 5);
  std::filesystem::remove(path);
  expect_error([&] { GgufFile{path}; }, {"expected a file that exists"});
}

// ---- What broke other parsers
// -----------------------------------------------------------------------------------------

TEST(GgufRefuses, AFileThatEndsAnywhere) {
  const Bytes whole = small().bytes();
  const std::size_t data = whole.size() - static_cast<std::size_t>(5 * 32);
  for (std::size_t length = 0; length < data + 4 * 32 + 16; ++length) {  // 16 bytes of the last tensor
    const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    expect_error([&] { GgufFile{cut}; }, {"[attn::GgufFile] ", "expected ", ", got "});
    if (HasFailure()) FAIL() << length;
  }
}

TEST(GgufRefuses, OtherFilesVersionsAndByteOrders) {
  Bytes bytes = small().bytes();
  for (const std::uint32_t version : {0U, 1U, 4U, 0xFFFFFFFFU}) {
    write_over(bytes, 4, version);
    expect_refused(bytes, {"version of ", "expected 2 or 3, got " + std::to_string(version)});
  }
  write_over(bytes, 4, std::uint32_t{0x03000000});
  expect_refused(bytes, {"expected little-endian, got big-endian"});
  bytes[0] = std::byte{'g'};
  expect_refused(bytes, {"expected GGUF"});
}

TEST(GgufRefuses, ShapesWhoseProductWrapsToZero) {
  for (const std::vector<std::int64_t>& ne : {std::vector<std::int64_t>{std::int64_t{1} << 32, std::int64_t{1} << 32},
                                              {huge, huge},
                                              {4, huge, 4, 4},
                                              {0, huge, huge},
                                              {huge, huge, 0},
                                              {std::int64_t{1} << 60}})
    expect_refused(with_info({"w", static_cast<std::uint32_t>(ne.size()), ne, 0, 0}),
                   {"shape of w", "expected a size that a file can have, got ["});
}

TEST(GgufRefuses, SizesThatOverflowWhenAdded) {
  Writer writer;
  for (int i = 0; i < 40; ++i)  // 2^57 numbers of 8 bytes are still a size; a few of them are not
    writer.add_info({"w" + std::to_string(i), 1, {std::int64_t{1} << 57}, 28, static_cast<std::uint64_t>(i) << 60});
  expect_refused(writer.bytes(), {"size of w1", "expected bytes that a file can have"});
}

TEST(GgufRefuses, NegativeOffsets) {
  expect_refused(with_info({"w", 1, {8}, 0, static_cast<std::uint64_t>(-32)}),
                 {"offset of w", "this one at 0, got -32"});
}

TEST(GgufRefuses, DataThatPassesTheEndOfTheFile) {
  const TensorInfo info{"w", 1, {16}, 0, 0};
  EXPECT_NO_THROW(GgufFile(with_info(info, 64)));
  expect_refused(with_info(info, 63), {"to the end of w, got "});
  expect_refused(with_info({"w", 2, {1 << 20, 1 << 20}, 0, 0}),
                 {"to the end of w, got "});  // dimensions beyond the data
}

TEST(GgufRefuses, TypesThatDoNotExist) {
  for (const std::int32_t type : {-1, std::numeric_limits<std::int32_t>::min(), 4, 5, 31, 36, 38, 40, 1000})
    expect_refused(with_info({"w", 1, {8}, static_cast<std::uint32_t>(type), 0}),
                   {"type of w", "expected one that GGUF has, got " + std::to_string(type)});
}

TEST(GgufRefuses, RanksAboveFour) {
  expect_refused(with_info({"w", 5, {1, 1, 1, 1, 1}, 0, 0}), {"rank of w", "expected 0 to 4, got 5"});
  expect_refused(with_info({"w", 0xFFFFFFFFU, {}, 0, 0}), {"expected 0 to 4, got 4294967295"});
}

TEST(GgufRefuses, NegativeSizes) {
  expect_refused(with_info({"w", 2, {4, -1}, 0, 0}), {"expected no negative size, got [-1,4]"});
  expect_refused(with_info({"w", 1, {std::numeric_limits<std::int64_t>::min()}, 0, 0}), {"no negative size"});
}

TEST(GgufRefuses, RowsThatAreNotWholeBlocks) {
  expect_refused(with_info({"w", 2, {33, 32}, 8, 0}),
                 {"expected a multiple of 32 numbers in a row of Q8_0, got [32,33]"});
  expect_refused(with_info({"w", 1, {32}, 12, 0}), {"multiple of 256 numbers in a row of Q4_K"});
  expect_refused(with_info({"w", 0, {}, 8, 0}), {"multiple of 32"});
}

TEST(GgufRefuses, TensorsThatOverlapOrLeaveGaps) {
  for (const std::uint64_t second : {0U, 16U, 31U, 33U, 64U}) {
    Bytes bytes = Writer().add_info({"a", 1, {8}, 0, 0}).add_info({"b", 1, {8}, 0, second}).bytes();
    bytes.resize(bytes.size() + 200);
    expect_refused(bytes, {"offset of b", "this one at 32, got " + std::to_string(second)});
  }
}

TEST(GgufRefuses, KeysAndNamesThatComeTwice) {
  expect_refused(Writer().add("k", 1).add("other", 2).add("k", 3).bytes(),
                 {"keys in ", "expected each once, got k twice"});
  expect_refused(Writer().add_tensor("w", GgufType::f32, {1}, six).add_tensor("w", GgufType::f32, {1}, six).bytes(),
                 {"names in ", "expected each once, got w twice"});
}

TEST(GgufRefuses, NamesOf64BytesOrMore) {
  EXPECT_NO_THROW(GgufFile(Writer().add_tensor(std::string(63, 'n'), GgufType::f32, {1}, bytes_of({1.F})).bytes()));
  expect_refused(Writer().add_tensor(std::string(64, 'n'), GgufType::f32, {1}, bytes_of({1.F})).bytes(),
                 {"name of tensor 0", "expected at most 63 bytes, got 64"});
}

TEST(GgufRefuses, AlignmentsThatAreNotPowersOfTwo) {
  for (const std::uint32_t alignment : {0U, 3U, 48U, 0xFFFFFFFFU})
    expect_refused(Writer().add("general.alignment", alignment).bytes(),
                   {"general.alignment", "expected a power of two, got " + std::to_string(alignment)});
  expect_refused(Writer().add("general.alignment", std::uint64_t{32}).bytes(),
                 {"expected a value of type u32, got u64"});
  expect_refused(Writer().add_array("general.alignment", std::vector<std::uint32_t>{32}).bytes(),
                 {"expected a value of type u32, got an array of u32"});
}

TEST(GgufRefuses, CountsThatTheFileCannotHold) {
  for (const std::int64_t count :
       {std::int64_t{-1}, std::numeric_limits<std::int64_t>::min(), huge, std::int64_t{1} << 30})
    for (const std::size_t at : {8U, 16U}) {
      Bytes bytes = small().bytes();
      write_over(bytes, at, count);
      expect_refused(bytes, {at == 8 ? "tensors in " : "keys in ", ", got " + std::to_string(count)});
    }
  Bytes bytes = small().bytes();
  write_over(bytes, 8, std::int64_t{1000});
  expect_refused(bytes, {"expected as many as ", "bytes can hold, got 1000"});
}

TEST(GgufRefuses, StringsLongerThanTheFile) {
  for (const std::uint64_t length :
       {std::uint64_t{1} << 20, ~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 63}) {
    Bytes value;
    put(value, length);
    value.resize(40);
    expect_refused(Writer().add_raw("s", 8, value).bytes(), {"s at byte ", "to the end of the file"});
    Bytes bytes = small().bytes();
    write_over(bytes, 24, length);  // of the first key
    expect_refused(bytes, {"key at byte ", "to the end of the file"});
  }
}

TEST(GgufRefuses, ArraysLongerThanTheFile) {
  for (const std::uint32_t type : {0U, 5U, 8U, 12U})
    for (const std::uint64_t count :
         {std::uint64_t{1} << 20, ~std::uint64_t{0}, (std::uint64_t{1} << 61) + 1, std::uint64_t{1} << 62}) {
      Bytes value;
      put(value, type), put(value, count);
      value.resize(60);
      expect_refused(Writer().add_raw("a", 9, value).bytes(), {"value of a at byte ", "to the end of the file"});
    }
}

TEST(GgufRefuses, ValuesOfUnknownTypesAndNestedArrays) {
  expect_refused(Writer().add_raw("k", 13, Bytes(8)).bytes(), {"type of k", "got 13"});
  expect_refused(Writer().add_raw("k", 0xFFFFFFFFU, Bytes(8)).bytes(), {"type of k", "got 4294967295"});
  for (const std::uint32_t inner : {9U, 13U, 0x80000000U}) {
    Bytes value;
    put(value, inner), put(value, std::uint64_t{0});
    expect_refused(Writer().add_raw("k", 9, value).bytes(), {"no array in an array, got " + std::to_string(inner)});
  }
}

TEST(GgufRefuses, AFileThatShrinksWhileMapped) {
  const TemporaryFolder folder;
  const auto path = folder.write("shrinks.gguf", as_text(small().bytes()));
  const GgufFile file(path);
  std::filesystem::resize_file(path, 100);
  expect_error([&] { (void)file.read<float, 2>("weight"); },
               {"[attn::GgufFile::read] ", "as when it was opened, got 100"});
  expect_error([&] { (void)file.tensor("weight"); }, {"[attn::GgufFile::tensor] "});
  expect_error([&] { (void)file.contains("weight"); }, {"[attn::GgufFile::contains] "});
  expect_error([&] { (void)file.has("weight"); }, {"[attn::GgufFile::has] "});
  expect_error([&] { (void)file.names(); }, {"[attn::GgufFile::names] "});
  expect_error([&] { (void)file.array<int>("llama.attention.head_count_kv"); }, {"[attn::GgufFile::array] "});
}

/// Whatever single byte of a file is changed: it is read, or refused in a sentence.
TEST(GgufRefuses, OrReadsFilesWithAnyByteChanged) {
  const Bytes whole = small().bytes();
  std::mt19937 words(1);
  int read = 0, refused = 0;
  for (std::size_t at = 0; at < whole.size(); ++at)
    for (const unsigned flip : {1U, 0x80U, 0xFFU, static_cast<unsigned>(words() % 255U + 1U)}) {
      Bytes bytes = whole;
      bytes[at] ^= static_cast<std::byte>(flip);
      try {
        const GgufFile file(bytes);
        for (const std::string_view key : file.keys()) (void)file.is_array(key);
        for (const std::string_view name : file.names()) (void)file.tensor(name);
        ++read;
      } catch (const attn::Error&) {
        ++refused;
      }
    }
  EXPECT_GT(read, 500);
  EXPECT_GT(refused, 500);
}

}  // namespace
