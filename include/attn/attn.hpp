// attn: attention on Eigen tensors. This is the one header to include.
#pragma once

#include "config.hpp"
#include "version.hpp"
#include "error.hpp"
#include "math.hpp"
#include "overlap.hpp"

#include "position.hpp"
#include "view.hpp"
#include "mask.hpp"
#include "sequence_length.hpp"
#include "score.hpp"
#include "philox.hpp"
#include "float_environment.hpp"
#include "waitable_word.hpp"
#include "scratch.hpp"
#include "memory.hpp"
#include "executor.hpp"
#include "thread_pool.hpp"
#include "parallel.hpp"

#include "kernel/problem.hpp"
#include "kernel/isa/isa.hpp"
#include "kernel/isa/targets.hpp"

#include "tensor.hpp"
#include "tensor_argument.hpp"

#include "softmax.hpp"
#include "dropout.hpp"
#include "rms_norm.hpp"
#include "packed_matrix.hpp"
#include "linear.hpp"
#include "rotary_scaling.hpp"
#include "rotary.hpp"
#include "rotary_layout.hpp"
#include "kv_cache.hpp"
#include "attention.hpp"
#include "reference.hpp"

#include "llama_attention_config.hpp"
#include "llama_attention.hpp"
