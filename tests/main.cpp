// The main of every test program: GoogleTest's, but a CPU that lacks the instruction set ATTN_ISA asks for skips the program.
#include <attn/kernel/isa/isa.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // Not active_isa(): isa_test must find that nothing has been chosen yet.
  const char* forced = std::getenv("ATTN_ISA");
  if (forced != nullptr && *forced != '\0' && std::ranges::count(attn::supported_isas(), forced, attn::isa_name) == 0) {
    std::cout << "skipped: this CPU lacks " << forced << '\n';
    return 77;  // SKIP_RETURN_CODE in CMakeLists.txt
  }
  return RUN_ALL_TESTS();
}
