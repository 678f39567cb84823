#include "file_support.hpp"

#include <attn/io/mapped_file.hpp>

#include <gtest/gtest.h>

#include <type_traits>
#include <utility>

namespace {

using attn::MappedFile;
using attn_test::as_text;
using attn_test::refusal;
using attn_test::TemporaryFolder;

static_assert(!std::is_copy_constructible_v<MappedFile> && !std::is_copy_assignable_v<MappedFile>);
static_assert(std::is_nothrow_move_constructible_v<MappedFile>);

/// Expects a message that names the function, the file and each of the texts.
void expect_message(const std::string& message, std::string_view function, const std::filesystem::path& file,
                    std::string_view text) {
  EXPECT_TRUE(message.starts_with("[attn::" + std::string(function) + "] file " + file.string())) << message;
  EXPECT_NE(message.find(text), std::string::npos) << message;
}

TEST(MappedFile, HasTheBytesOfTheFile) {
  const TemporaryFolder folder;
  const std::string bytes("a\0b\r\n\xff", 6);
  const MappedFile file(folder.write("file", bytes));
  EXPECT_EQ(as_text(file.bytes()), bytes);
  EXPECT_EQ(file.path(), folder.path() / "file");
}

TEST(MappedFile, HasAllBytesOfAFileOfManyPages) {
  const TemporaryFolder folder;
  std::string bytes(1'000'001, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 2654435761U >> 13);
  EXPECT_EQ(as_text(MappedFile(folder.write("file", bytes)).bytes()), bytes);
}

TEST(MappedFile, SpansStayValidWhenItIsMoved) {
  const TemporaryFolder folder;
  MappedFile first(folder.write("file", "12345"));
  const auto bytes = first.bytes();
  const MappedFile second = std::move(first);
  EXPECT_EQ(second.bytes().data(), bytes.data());
  EXPECT_EQ(as_text(bytes), "12345");
}

TEST(MappedFile, IsEmptyAfterItWasMovedFrom) {
  const TemporaryFolder folder;
  MappedFile first(folder.write("file", "12345"));
  const MappedFile second = std::move(first);
  EXPECT_TRUE(first.bytes().empty());           // NOLINT: what is left is asked for
  EXPECT_NO_THROW(first.check_unchanged("f"));  // NOLINT
}

TEST(MappedFile, MovingIntoOneReplacesItsFile) {
  const TemporaryFolder folder;
  MappedFile a(folder.write("a", "aaa"));
  a = MappedFile(folder.write("b", "bb"));
  EXPECT_EQ(as_text(a.bytes()), "bb");
  EXPECT_EQ(a.path(), folder.path() / "b");
}

TEST(MappedFile, StaysAsItIsWhenTheFileIsReplacedOrRemoved) {
  const TemporaryFolder folder;
  const MappedFile file(folder.write("file", "before"));
  std::filesystem::rename(folder.write("other", "x"), file.path());
  EXPECT_NO_THROW(file.check_unchanged("f"));
  std::filesystem::remove(file.path());
  EXPECT_NO_THROW(file.check_unchanged("f"));
  EXPECT_EQ(as_text(file.bytes()), "before");
}

TEST(MappedFile, RefusesAMissingFile) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "missing";
  expect_message(refusal([&] { MappedFile{path}; }), "MappedFile", path, "expected a file that exists, got");
}

TEST(MappedFile, RefusesAnEmptyFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("empty", "");
  expect_message(refusal([&] { MappedFile{path}; }), "MappedFile", path, "expected a file with bytes in it");
}

TEST(MappedFile, RefusesADirectory) {
  const TemporaryFolder folder;
  expect_message(refusal([&] { MappedFile{folder.path()}; }), "MappedFile", folder.path(), "got a directory");
}

TEST(MappedFile, RefusesADevice) {
  if (!std::filesystem::exists("/dev/null")) GTEST_SKIP() << "no /dev/null on this machine";
  expect_message(refusal([] { MappedFile{"/dev/null"}; }), "MappedFile", "/dev/null", "expected a regular file");
}

TEST(MappedFile, FindsAFileThatBecameShorter) {
#if __has_include(<sys/mman.h>)
  const TemporaryFolder folder;
  const MappedFile file(folder.write("file", "12345"));
  EXPECT_NO_THROW(file.check_unchanged("Reader::read"));
  std::filesystem::resize_file(file.path(), 4);
  expect_message(refusal([&] { file.check_unchanged("Reader::read"); }), "Reader::read", file.path(),
                 "expected 5 bytes, as when it was opened, got 4");
#else
  GTEST_SKIP() << "files are read as a whole on this system";
#endif
}

TEST(MappedFile, TakesAFileThatBecameLonger) {
  const TemporaryFolder folder;
  const MappedFile file(folder.write("file", "12345"));
  std::filesystem::resize_file(file.path(), 6);
  EXPECT_NO_THROW(file.check_unchanged("f"));
  EXPECT_EQ(as_text(file.bytes()), "12345");
}

}  // namespace
