#pragma once
// Processes of their own, for tests of what a program finds when it starts.

#include <array>
#include <attn/error.hpp>
#include <string>

#if __has_include(<sys/wait.h>) && __has_include(<unistd.h>)
#include <sys/wait.h>
#include <unistd.h>
#define ATTN_TEST_CAN_FORK 1

namespace attn_test {

/// The text that `speak` returns, or the text of the error it throws, in a process of its own. Empty if that process crashes.
template <class Speak>
std::string in_a_child(const Speak& speak) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    std::string text;
    try {
      text = speak();
    } catch (const attn::Error& error) {
      text = error.what();
    }
    const auto written = write(ends[1], text.data(), text.size());
    _exit(written == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text(1000, '\0');
  const auto length = read(ends[0], text.data(), text.size());
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (length < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) return {};
  text.resize(static_cast<std::size_t>(length));
  return text;
}

}  // namespace attn_test

#endif
