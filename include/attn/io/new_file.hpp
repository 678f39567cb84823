// Edge. A file that takes its place only when it is complete. No Eigen.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../error.hpp"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace attn::detail {

/// A file to be written: under a name of its own beside its place, moved there by `finish`. Whatever fails before leaves
/// what was there. Where its place is a symbolic link, what that points to is replaced.
/// Errors: a folder that is missing or not writable, a full disk, a place that a directory has.
class NewFile {
 public:
  NewFile(std::string_view function, const std::filesystem::path& path) : function_(function), path_(path) {
    std::error_code error;
    if (std::filesystem::is_symlink(path_, error)) path_ = std::filesystem::weakly_canonical(path_, error);
    require(!std::filesystem::is_directory(path_, error), "a file", "a directory");
    std::random_device random;
    beside_ = path_;
    beside_ += "." + std::to_string(random()) + ".part";
    errno = 0;
    file_.reset(std::fopen(beside_.string().c_str(), "wbx"));
    require(file_ != nullptr, "a place that can be written to", reason());
  }
  ~NewFile() {
    if (beside_.empty()) return;
    file_.reset();
    std::error_code ignored;
    std::filesystem::remove(beside_, ignored);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    errno = 0;
    const bool whole = bytes.empty() || std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) == bytes.size();
    require(whole, "room for it", reason());
  }
  /// Moves the file to its place.
  void finish() {
    errno = 0;
    bool whole = std::fflush(file_.get()) == 0;
#if __has_include(<unistd.h>)
    whole = whole && ::fsync(::fileno(file_.get())) == 0;  // else a crash could leave the new name without its contents
#endif
    whole = std::fclose(file_.release()) == 0 && whole;
    require(whole, "room for it", reason());
    std::error_code error;
    std::filesystem::rename(beside_, path_, error);
    require(!error, "a place that can be replaced", error.message());
    beside_.clear();
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  [[nodiscard]] static std::string reason() { return std::generic_category().message(errno); }
  void require(bool ok, std::string_view expected, std::string_view got) const {
    if (!ok) fail(function_, "file ", std::string_view(path_.string()), ", expected ", expected, ", got ", got);
  }

  std::string_view function_;  // for messages
  std::filesystem::path path_, beside_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace attn::detail
