// A fiber: a stack of its own, on which a function can be left in the middle and continued later.
//
// Switching saves the registers that the ABI makes a callee keep, changes the stack pointer, restores them: 8 ns on
// x86-64. Elsewhere (or with -DDLK_SIMT_UCONTEXT) ucontext does it, which takes system calls and 300 ns.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(DLK_SIMT_UCONTEXT)
#define DLK_SIMT_UCONTEXT
#endif
#ifdef DLK_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace dlk::simt::executor {

class Fiber {
 public:
  Fiber() = default;  // the stack that is running now
  /// A new stack. `entry` starts when it is first switched to, and must not return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Forgets what was on the stack (nothing is destroyed) and starts `entry` anew at the next switch.
  void restart();
  /// Leaves this fiber, which must be the running one, and continues `next`.
  void switch_to(Fiber& next);

 private:
  static void start();

  void (*entry_)() = nullptr;
  void* mapping_ = nullptr;  // a guard page, then the stack
  // The stack's bounds, for AddressSanitizer; those of the thread's own stack are learned at the first switch.
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
#ifdef DLK_SIMT_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace dlk::simt::executor
