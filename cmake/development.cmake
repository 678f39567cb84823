# What attn's own tests, benchmarks and examples share. No user of the library reads this file.

if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(ATTN_CCACHE ccache)
  if(ATTN_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${ATTN_CCACHE})
  endif()
endif()

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_COMPILE_WARNING_AS_ERROR ON) # `cmake --compile-no-warning-as-error` lifts it for a compiler we have not met

set(ATTN_SHARED_DATA_DIR ${attn_SOURCE_DIR}/../shared/data CACHE PATH
  "Model files that are not shipped; what needs them is skipped where they are missing")

# The library, every warning, and where the data lies. attn::attn is no SYSTEM library here, so its headers are held to
# the same warnings; Eigen, GoogleTest and Benchmark are, so theirs are silent.
# clang++ 14 has -Wcast-align=strict under the name of -Wcast-align.
set(ATTN_WARNINGS -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wswitch-enum -Wcast-align
  -Wcast-align=strict -Wno-unknown-warning-option)
add_library(attn_development INTERFACE)
target_link_libraries(attn_development INTERFACE attn::attn)
target_compile_options(attn_development INTERFACE ${ATTN_WARNINGS})
target_compile_definitions(attn_development INTERFACE
  ATTN_TEST_DATA_DIR="${attn_SOURCE_DIR}/tests/data"
  ATTN_SHARED_DATA_DIR="${ATTN_SHARED_DATA_DIR}")

if(ATTN_BUILD_TESTS)
  enable_testing()
endif()
