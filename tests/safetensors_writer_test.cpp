// Writing safetensors files.
#include <attn/io/safetensors.hpp>

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "child_process.hpp"
#include "file_support.hpp"
#include "safetensors_support.hpp"

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>

#include <csignal>
#endif

namespace {

using attn::Index;
using attn::SafetensorsFile;
using attn::SafetensorsWriter;
using attn::Tensor;
using attn::View;
using attn_test::as_bytes;
using attn_test::contents_of;
using attn_test::data_of;
using attn_test::file_of;
using attn_test::refusal;
using attn_test::TemporaryFolder;

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

template <class T, int Rank>
Tensor<T, Rank> counted(const std::array<Index, std::size_t{Rank}>& shape) {
  auto x = attn::detail::make_tensor<T, Rank>(shape);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(static_cast<float>(i + 1));
  return x;
}
std::size_t files_in(const TemporaryFolder& folder) {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()));
}

TEST(SafetensorsWriter, WritesTheBytesOfTheFormat) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("b", counted<float, 2>({1, 2}));
  writer.add("a", counted<float, 1>({1}));
  writer.set_metadata("format", "pt");
  writer.write(folder.path() / "x");
  EXPECT_EQ(contents_of(folder.path() / "x"),
            file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]}}   )",
                    data_of({1, 1, 2})));
}

TEST(SafetensorsWriter, WritesAFileOfNothing) {
  const TemporaryFolder folder;
  SafetensorsWriter().write(folder.path() / "x");
  EXPECT_EQ(contents_of(folder.path() / "x"), file_of("{}      "));
}

TEST(SafetensorsWriter, WritesViewsOfAnyStrides) {
  const TemporaryFolder folder;
  auto x = counted<float, 3>({2, 3, 4});
  SafetensorsWriter writer;
  writer.add("turned", View<const float, 2>(x.data(), {4, 3}, {1, 4}));
  writer.add("part", View<const float, 3>(x.data() + 1, {2, 3, 2}, {12, 4, 1}));
  writer.add("repeated", View<const float, 2>(x.data(), {3, 2}, {0, 1}));
  writer.add("heads", attn::split_heads(x, 2));
  writer.write(folder.path() / "x");
  const SafetensorsFile file(folder.path() / "x");
  const auto turned = file.read<float, 2>("turned"), repeated = file.read<float, 2>("repeated");
  const auto part = file.read<float, 3>("part");
  const auto heads = file.read<float, 4>("heads");
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 3; ++j) EXPECT_EQ(turned(i, j), x(0, j, i));
  for (Index b = 0; b < 2; ++b)
    for (Index i = 0; i < 3; ++i)
      for (Index j = 0; j < 2; ++j) {
        EXPECT_EQ(part(b, i, j), x(b, i, j + 1));
        EXPECT_EQ(repeated(i, j), x(0, 0, j));
        for (Index h = 0; h < 2; ++h) EXPECT_EQ(heads(b, h, i, j), x(b, i, 2 * h + j));
      }
}

TEST(SafetensorsWriter, WritesEmptyTensorsAndSingleNumbers) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("one", counted<double, 0>({}));
  writer.add("none", counted<float, 2>({3, 0}));
  const View<const float, 3> empty(nullptr, {0, 5, 2});
  writer.add("view", empty);
  writer.write(folder.path() / "x");
  const SafetensorsFile file(folder.path() / "x");
  EXPECT_EQ((file.read<double, 0>("one")()), 1.0);
  EXPECT_EQ(file.tensor("none").shape, (std::vector<Index>{3, 0}));
  EXPECT_EQ(file.tensor("view").shape, (std::vector<Index>{0, 5, 2}));
}

TEST(SafetensorsWriter, AllItWritesIsAlignedInAMappedFile) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add_bytes("a", "U8", {3}, as_bytes("abc"));
  writer.add("b", counted<Eigen::half, 1>({3}));
  writer.add("c", counted<float, 1>({3}));
  writer.add("d", counted<Eigen::bfloat16, 1>({1}));
  writer.add("e", counted<double, 1>({3}));
  writer.write(folder.path() / "x");
  const SafetensorsFile file(folder.path() / "x");
  EXPECT_NO_THROW((void)(file.view<Eigen::half, 1>("b")));
  EXPECT_NO_THROW((void)(file.view<float, 1>("c")));
  EXPECT_NO_THROW((void)(file.view<Eigen::bfloat16, 1>("d")));
  EXPECT_NO_THROW((void)(file.view<double, 1>("e")));
}

TEST(SafetensorsWriter, KeepsATensorThatIsGivenAway) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  auto given = counted<float, 1>({1000}), lent = counted<float, 1>({2});
  writer.add("given", std::move(given));
  writer.add("lent", lent);
  lent(0) = -1;
  EXPECT_EQ(given.size(), 0);  // NOLINT: what is left is asked for
  writer.write(folder.path() / "x");
  const SafetensorsFile file(folder.path() / "x");
  EXPECT_EQ((file.read<float, 1>("given")(999)), 1000.F);
  EXPECT_EQ((file.read<float, 1>("lent")(0)), 1.F);
}

TEST(SafetensorsWriter, ACopyWritesTheSame) {
  const TemporaryFolder folder;
  SafetensorsWriter first;
  first.add("given", counted<float, 1>({1000}));
  const SafetensorsWriter second = first;
  first.write(folder.path() / "x");
  first = {};
  second.write(folder.path() / "y");
  EXPECT_EQ(contents_of(folder.path() / "x"), contents_of(folder.path() / "y"));
}

TEST(SafetensorsWriter, EscapesNamesAndTexts) {
  const TemporaryFolder folder;
  const std::string odd = "\"\\\n\x01\xC3\xA4", nul("a\0b", 3);
  SafetensorsWriter writer;
  writer.add(odd, counted<float, 1>({1}));
  writer.add(nul, counted<float, 1>({1}));
  writer.set_metadata(odd, odd);
  writer.write(folder.path() / "x");
  const SafetensorsFile file(folder.path() / "x");
  EXPECT_TRUE(file.contains(odd) && file.contains(nul));
  EXPECT_EQ(file.metadata().at(odd), odd);
}

TEST(SafetensorsWriter, RefusesWhatCannotBeNamedOrRead) {
  SafetensorsWriter writer;
  const auto a = counted<float, 1>({3});
  writer.add("a", a);
  for (const std::string name : {"a", "", "__metadata__"})
    EXPECT_TRUE(has(refusal([&] { writer.add(name, a); }), "[attn::SafetensorsWriter::add] name")) << name;
  EXPECT_TRUE(has(refusal([&] { writer.add("\xFF", a); }), "UTF-8"));
  EXPECT_TRUE(has(refusal([&] { writer.set_metadata("a", "\xFF"); }), "UTF-8"));
  EXPECT_TRUE(has(refusal([&] { writer.add_bytes("b", "F32", {3}, as_bytes("12345678")); }), "expected 12 bytes"));
  EXPECT_TRUE(has(refusal([&] { writer.add_bytes("b", "F31", {3}, as_bytes("12345678")); }), "F31"));
  EXPECT_TRUE(has(refusal([&] { writer.add_bytes("b", "F32", {-1, -2}, as_bytes("12345678")); }), "negative"));
}

TEST(SafetensorsWriter, RefusesTextsThatNoReaderTakes) {
  const TemporaryFolder folder;
  const auto path = folder.write("x", "before");
  SafetensorsWriter writer;
  writer.set_metadata("long", std::string(9'000'000, 'x'));
  EXPECT_TRUE(has(refusal([&] { writer.write(path); }), "[attn::SafetensorsWriter::write] file"));
  EXPECT_EQ(contents_of(path), "before");
  EXPECT_EQ(files_in(folder), 1U);
}

TEST(SafetensorsWriter, ReplacesAFileWhoseViewsStayValid) {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("a", counted<float, 1>({3}));
  writer.write(folder.path() / "x");
  const SafetensorsFile before(folder.path() / "x");
  const auto view = before.view<float, 1>("a");
  writer.add("b", view);
  writer.write(folder.path() / "x");
  EXPECT_EQ(view(2), 3.F);
  EXPECT_EQ(SafetensorsFile(folder.path() / "x").names().size(), 2U);
  EXPECT_EQ(files_in(folder), 1U);
}

TEST(SafetensorsWriter, RefusesPlacesThatCannotBeWritten) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() / "folder");
  const SafetensorsWriter writer;
  const std::string none = refusal([&] { writer.write(folder.path() / "none" / "x"); });
  EXPECT_TRUE(has(none, "[attn::SafetensorsWriter::write] file") && has(none, "written to, got No such file")) << none;
  EXPECT_TRUE(has(refusal([&] { writer.write(folder.path() / "folder"); }), "got a directory"));
  EXPECT_TRUE(has(refusal([&] { writer.write(""); }), "[attn::SafetensorsWriter::write]"));
  EXPECT_EQ(files_in(folder), 1U);
}

TEST(SafetensorsWriter, WritesWhatALinkPointsTo) {
  const TemporaryFolder folder;
  const auto path = folder.write("x", "before");
  std::error_code error;
  std::filesystem::create_symlink(path, folder.path() / "link", error);
  if (error) GTEST_SKIP() << "no symbolic links on this system";
  SafetensorsWriter().write(folder.path() / "link");
  EXPECT_TRUE(std::filesystem::is_symlink(folder.path() / "link"));
  EXPECT_EQ(contents_of(path), file_of("{}      "));
}

#if defined(ATTN_TEST_CAN_FORK) && __has_include(<sys/resource.h>)
TEST(SafetensorsWriter, AFullDiskLeavesWhatWasThere) {
  const TemporaryFolder folder;
  const auto path = folder.write("x", "before");
  const std::string text = attn_test::in_a_child([&]() -> std::string {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return "no limit";
    SafetensorsWriter writer;
    writer.add("a", counted<float, 1>({100'000}));
    writer.write(path);
    return "written";
  });
  EXPECT_TRUE(has(text, "[attn::SafetensorsWriter::write] file " + path.string() + ", expected room for it, got File"))
      << text;
  EXPECT_EQ(contents_of(path), "before");
  EXPECT_EQ(files_in(folder), 1U);
}
#endif

}  // namespace
