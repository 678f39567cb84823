// Floor 2. The kernels, written once in the compiler's vector extension and included once per instruction set by
// targets.hpp, inside a namespace and a region that sets the target. No #include, no lambda (its operator() would not
// get the region's target), no exception and no allocation here or in the parts.
#include "vector.inl"
#include "matmul.inl"
#include "softmax.inl"
#include "attention.inl"
#include "decode.inl"

/// What floor 4 calls. Each task may run on any thread; `scratch` belongs to the thread, `plan.scratch()` accumulators.
struct Kernels {
  template <class T>
  using Linear = LinearPlan<T>;
  template <class T>
  static void linear(const LinearProblem<T>& problem, const LinearPlan<T>& plan, Index task,
                     AccumulatorOf<T>* scratch) {
    linear_task(problem, plan, task, scratch);
  }
  template <class T>
  static void softmax(const T* x, T* y, Index n, AccumulatorOf<T>* scratch) {
    softmax_row(x, y, n, scratch);
  }
  template <class A, class M, class F>
  static Rules<A> rules(const M& mask, const F& score) {
    return rules_of<A>(mask, score);
  }
  template <class T>
  using Attention = AttentionPlan<T>;
  template <class T>
  static void attention(const AttentionProblem<T>& problem, const AttentionPlan<T>& plan,
                        const Rules<AccumulatorOf<T>>& rules, Index task, AccumulatorOf<T>* scratch) {
    AttentionTask<T>(problem, rules, plan, task, scratch).run();
  }
  template <class T>
  using Decode = DecodePlan<T>;
  template <class T>
  static void decode(const AttentionProblem<T>& problem, const DecodePlan<T>& plan,
                     const Rules<AccumulatorOf<T>>& rules, Index task, AccumulatorOf<T>* partials,
                     AccumulatorOf<T>* scratch) {
    decode_task(problem, plan, rules, task, partials, scratch);
  }
  template <class T>
  static void join(const AttentionProblem<T>& problem, const DecodePlan<T>& plan, Index task,
                   const AccumulatorOf<T>* partials, AccumulatorOf<T>* scratch) {
    join_task(problem, plan, task, partials, scratch);
  }
};

// The settings were this inclusion's.
#undef ATTN_VECTOR_BYTES
#undef ATTN_FUSED_MULTIPLY
#undef ATTN_VECTOR_REGISTERS
#undef ATTN_VECTOR_CONSTRAINT
