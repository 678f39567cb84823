// Floor 0. What attn asks of the compiler, said in one sentence where it is missing, and what it asks about the target.
#pragma once

#if !defined(__GNUC__)
#error attn needs the vectors of g++ or clang++
#elif __cplusplus < 202002L
#error attn needs C++20: compile with -std=c++20
#elif !defined(__cpp_exceptions)
#error attn needs exceptions, with which it refuses bad input: compile without -fno-exceptions
#else
#define ATTN_CAN_BE_COMPILED
#endif

#if !defined(ATTN_CAN_BE_COMPILED)
#include "stopped_by_the_error_above"  // a missing file stops compilers; #error alone lets hundreds of errors follow
#endif
#undef ATTN_CAN_BE_COMPILED

// Units compiled with different -m flags generate different code from the same functions. An inline namespace named
// after the flags keeps the linker from merging them (the one-definition rule).
#if defined(__AVX512F__)
#define ATTN_UNIT_FLAGS with_avx512f
#elif defined(__AVX2__)
#define ATTN_UNIT_FLAGS with_avx2
#elif defined(__AVX__)
#define ATTN_UNIT_FLAGS with_avx
#else
#define ATTN_UNIT_FLAGS plain
#endif

// Whether kernels are also compiled for instruction sets that are chosen at run time.
#if defined(__x86_64__)
#define ATTN_X86_TARGETS 1
#else
#define ATTN_X86_TARGETS 0
#endif
