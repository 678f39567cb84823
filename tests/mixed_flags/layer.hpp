// What the two units of this program share: a layer and tensors go from one to the other.
#pragma once

#include <attn/linear.hpp>

attn::Tensor<float, 2> apply_twice(const attn::Linear<float>& layer, const attn::Tensor<float, 2>& x);
