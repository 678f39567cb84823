// Edge. Tokenizers: text to the numbers that models read, and back. No Eigen.
#pragma once

#include "byte_pair.hpp"
#include "sentence_piece.hpp"
#include "vocabulary.hpp"
