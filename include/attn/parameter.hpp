// Floor 4. A parameter as an optimiser sees it: a name, its values and their gradient.
#pragma once

#include <span>
#include <string>
#include <utility>

#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// One parameter of a module: it refers to the module's memory, so what is written to its values is at once in use.
///
/// Shapes: values and gradient have one element for each other, in the module's own order (a weight of Linear in panels,
/// see PackedMatrix). Elements that only fill the last panel have value 0 and gradient 0: an optimiser is elementwise.
/// Types: gradients are in float, for double in double.
/// Conventions: valid as long as a module holds the parameter. Modules that share one give the same memory.
template <Scalar T>
class Parameter {
 public:
  using A = Accumulator<T>;

  Parameter(std::string name, std::span<T> values, std::span<A> gradient)
      : name_(std::move(name)), values_(values), gradient_(gradient) {}

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::span<T> values() const { return values_; }
  [[nodiscard]] std::span<A> gradient() const { return gradient_; }

  /// Rounds a copy that is kept in the accumulator's type into the values. Errors: another number of elements.
  void assign(std::span<const A> master) const {
    detail::require(master.size() == values_.size(), "Parameter::assign", "elements, expected ", values_.size(),
                    ", got ", master.size());
    for (std::size_t i = 0; i < master.size(); ++i) values_[i] = static_cast<T>(master[i]);
  }

  /// The same parameter as that of a module that has this one as its part `part`: "weight" becomes "query.weight".
  [[nodiscard]] Parameter within(const std::string& part) const { return {part + '.' + name_, values_, gradient_}; }

 private:
  std::string name_;
  std::span<T> values_;
  std::span<A> gradient_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
