// Floor 0. What attn asks of the compiler, said in one sentence where it is missing.
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
