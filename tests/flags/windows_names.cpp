// What <windows.h> makes macros of, as its headers have it, before attn.hpp: none of its names is one of these. `min` and
// `max` are not among them: MinGW leaves them alone in C++, and elsewhere programs are compiled with -DNOMINMAX.
#define far
#define near
#define pascal
#define cdecl
#define interface struct
#define small char
#define hyper long long
#define FAR
#define NEAR
#define IN
#define OUT
#define OPTIONAL
#define UNALIGNED
#define CONST const
#define VOID void
#define TRUE 1
#define FALSE 0
#define STRICT 1
#define IGNORE 0
#define ERROR 0
#define NO_ERROR 0
#define DELETE (0x00010000L)
#define INFINITE 0xffffffff
#define ABSOLUTE 1
#define RELATIVE 2
#define TRANSPARENT 1
#define OPAQUE 2
#define THIS this

#include <attn/attn.hpp>

template class attn::LlamaAttention<float>;

attn::Tensor<float, 4> attend(const attn::Tensor<float, 4>& q) {
  return attn::scaled_dot_product_attention(q, q, q, attn::Causal{}, attn::SoftCap(50.F)).output;
}
