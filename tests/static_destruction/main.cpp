// A program that computes whenever a program may: before main, in it, and in the destructors of static and thread_local
// objects, whose order among attn's own differs. Each result must be that of main. Says so last of all.
#include <attn/attn.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

std::atomic<int> computed{0};

/// The first number of a product that is worth several threads, and needs scratch memory.
float compute() {
  const attn::Linear<float> layer(256, 256, true, 1);
  attn::Tensor<float, 2> x(128, 256);
  x.setConstant(0.5F);
  return layer.forward(x)(127, 255);
}

/// Computes and compares; a process that gets another number ends at once.
void check(const char* when) {
  static const float expected = compute();
  const float got = compute();
  if (!(got == expected)) {
    std::printf("%s: expected %g, got %g\n", when, static_cast<double>(expected), static_cast<double>(got));
    std::_Exit(1);
  }
  ++computed;
}

/// Made first, so destroyed last.
struct Last {
  ~Last() { std::printf("computed %d times\n", computed.load()); }
} last;

/// Made before anything of attn, so destroyed when the shared pool's threads and main's workspace have ended.
struct Early {
  ~Early() { check("after the shared pool's threads"); }
} early;

/// The first to use attn, before main: its destructor has still to come when the shared pool's threads have ended.
struct First {
  First() { check("before main"); }
  ~First() { check("while static objects are destroyed"); }
} first;

/// Destroyed with its thread, before or after its thread's workspace.
struct OfThread {
  ~OfThread() { check("while a thread ends"); }
};

void in_thread(bool object_first) {
  if (object_first) {  // destroyed last
    thread_local const OfThread object;
    check("in a thread");
  } else {
    check("in a thread");
    thread_local const OfThread object;
  }
}

}  // namespace

int main() {
  in_thread(true);
  std::thread(in_thread, true).join();
  std::thread(in_thread, false).join();
  static const First of_main;  // made after the shared pool, so destroyed before
  std::thread([] { std::thread(in_thread, true).join(); }).join();
  return 0;
}
