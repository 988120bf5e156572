#include "csrc/simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "csrc/simt/sanitizer.h"

#ifndef DLK_SIMT_UCONTEXT
// void dlk_simt_switch(void** save_stack_pointer, void* stack_pointer)
extern "C" void dlk_simt_switch(void**, void*);
asm(R"(
.text
.globl dlk_simt_switch
.hidden dlk_simt_switch
.type dlk_simt_switch, @function
dlk_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dlk_simt_switch, .-dlk_simt_switch
)");
#endif

namespace dlk::simt::executor {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStack = (kAddressSanitizer ? 256 : 64) << 10;  // sanitizers make frames larger

Fiber *from, *to;  // of the switch under way

}  // namespace

Fiber::Fiber(void (*entry)()) : entry_(entry) {
  mapping_ = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, kPage, PROT_NONE);  // an overflow ends the program rather than another fiber's stack
  // Stacks that all begin at the same address modulo a page would all lie in the same few sets of the cache.
  static size_t number = 0;
  bottom_ = static_cast<char*>(mapping_) + kPage;
  bytes_ = kStack - number++ % 32 * 128;
  restart();
}

Fiber::~Fiber() {
  if (mapping_) munmap(mapping_, kPage + kStack);
}

void Fiber::restart() {
  unpoison(bottom_, bytes_);  // the frames that are forgotten
  fake_stack_ = nullptr;
#ifdef DLK_SIMT_UCONTEXT
  getcontext(&context_);
  context_.uc_stack = {.ss_sp = const_cast<void*>(bottom_), .ss_flags = 0, .ss_size = bytes_};
  context_.uc_link = nullptr;
  makecontext(&context_, start, 0);
#else
  // What dlk_simt_switch pops: six registers and the address to return to. Above it a null return address, where
  // debuggers end; it also leaves the stack pointer as `start` expects it, 8 above a multiple of 16.
  auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(bottom_) + bytes_) - 1;
  top[0] = nullptr;
  top[-1] = reinterpret_cast<void*>(&start);
  for (int i = 2; i <= 7; ++i) top[-i] = nullptr;
  stack_pointer_ = top - 7;
#endif
}

void Fiber::switch_to(Fiber& next) {
  from = this;
  to = &next;
  start_switch(&fake_stack_, next.bottom_, next.bytes_);
#ifdef DLK_SIMT_UCONTEXT
  swapcontext(&context_, &next.context_);
#else
  dlk_simt_switch(&stack_pointer_, next.stack_pointer_);
#endif
  finish_switch(fake_stack_, &from->bottom_, &from->bytes_);  // `from` is now who has switched back to this fiber
}

void Fiber::start() {
  finish_switch(nullptr, &from->bottom_, &from->bytes_);
  to->entry_();
}

}  // namespace dlk::simt::executor
