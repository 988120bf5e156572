// Dropout of elements (`dropout`) and of whole channels (`dropout2d`): one op with its in-place form and backward op.
//
// The ops take their seed, so they are functions, and give beside the output the keep bits as int64 words: one bit per
// element in the order of the output's memory, or, for channels, one per (n, c). They are all that backward needs.
#include "csrc/core/dropout.h"

#include <ATen/ops/dropout.h>
#include <ATen/ops/feature_dropout.h>
#include <ATen/ops/randint.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

/// N x C planes of the rest: what channels and their order in memory need. Fewer dimensions: sizes of 1.
DropoutShape shape_of(at::IntArrayRef sizes, bool channels_last) {
  DropoutShape shape{1, 1, 1, channels_last};
  for (size_t i = 0; i < sizes.size(); ++i) (i == 0 ? shape.N : i == 1 ? shape.C : shape.P) *= sizes[i];
  return shape;
}

Tensor empty_keep(const Tensor& x, bool channels) {
  const DropoutShape shape = shape_of(sizes_of(x), false);
  return allocate_bits(shape.N * shape.C * (channels ? 1 : shape.P), x.options());
}

DropoutDraw draw_of(const Tensor& seed, double p) {
  TORCH_CHECK(p > 0 && p < 1, "dropout: p must be between 0 and 1, got ", p);
  // 32 bits: p is exact to 2^-33, and keeping everything (2^32) is out of reach only of p below that.
  const double threshold = std::min(std::nearbyint((1 - p) * 0x1p32), 0x1p32 - 1);
  return {seed.const_data_ptr<int64_t>(), static_cast<uint32_t>(threshold)};
}

/// Fills `keep`: of each plane, or of each element in the order of channels_last.
void draw_keep(const Tensor& keep, DropoutShape shape, DropoutDraw draw, bool channels) {
  with_kernels<DropoutMaskKernels>(keep, [&](const DropoutMaskKernels& kernels, Context& context) {
    if (channels) return kernels.draw(draw, shape.N * shape.C, words(keep), context);
    const Tensor logical = allocate(keep.sizes(), keep.options());
    kernels.draw(draw, shape.N * shape.C * shape.P, words(logical), context);
    kernels.to_channels_last(shape, words(logical), words(keep), context);
  });
}

/// y = x * keep / (1 - p). Both are dense in the layout of `shape`; y may be x.
void apply_keep(const Tensor& x, const Tensor& keep, DropoutShape shape, double p, bool channels, const Tensor& y) {
  const double scale = 1 / (1 - p);
  with_kernels<DropoutKernels>(x, [&]<class T>(const DropoutKernels<T>& kernels, Context& context) {
    const T* from = const_data<T>(x);
    T* to = mutable_data<T>(y);
    if (channels) return kernels.apply_to_planes(shape, words(keep), scale, from, to, context);
    kernels.apply(x.numel(), words(keep), scale, from, to, context);
  });
}

/// The same, after drawing `keep`.
void drop(const Tensor& x, const Tensor& keep, const Tensor& seed, double p, bool channels, const Tensor& y) {
  const DropoutShape shape = shape_of(x.sizes(), is_channels_last(x));
  const DropoutDraw draw = draw_of(seed, p);
  if (channels || shape.channels_last) {
    draw_keep(keep, shape, draw, channels);
    return apply_keep(x, keep, shape, p, channels, y);
  }
  with_kernels<DropoutKernels>(x, [&]<class T>(const DropoutKernels<T>& kernels, Context& context) {
    kernels.drop(draw, x.numel(), 1 / (1 - p), const_data<T>(x), words(keep), mutable_data<T>(y), context);
  });
}

// dropout(Tensor x, Tensor seed, float p, bool channels) -> (Tensor y, Tensor keep)
std::tuple<Tensor, Tensor> dropout(const Tensor& x, const Tensor& seed, double p, bool channels) {
  const Tensor y = allocate_like(x), keep = empty_keep(x, channels);
  if (x.is_meta() || y.numel() == 0) return {y, keep};
  const bool channels_last = is_channels_last(x);
  const Tensor xs = contiguous(x, format(channels_last));
  if (y.is_contiguous(format(channels_last))) {
    drop(xs, keep, seed, p, channels, y);
  } else {  // dense in some other order of dimensions
    const Tensor dense = allocate(x.sizes(), x.options(), format(channels_last));
    drop(xs, keep, seed, p, channels, dense);
    y.copy_(dense);
  }
  return {y, keep};
}

/// Drops in x itself; returns the keep bits.
Tensor drop_inplace(Tensor& x, const Tensor& seed, double p, bool channels) {
  const bool channels_last = is_channels_last(x);
  if (x.numel() == 0 || !x.is_contiguous(format(channels_last))) {
    const auto [y, keep] = bindings::dropout(x, seed, p, channels);
    x.copy_(y);
    return keep;
  }
  const Tensor keep = empty_keep(x, channels);
  drop(x, keep, seed, p, channels, x);
  return keep;
}

// dropout_(Tensor(a!) x, Tensor seed, float p, bool channels) -> Tensor(a!)
Tensor& dropout_(Tensor& x, const Tensor& seed, double p, bool channels) {
  check_inference_tensor(x);
  drop_inplace(x, seed, p, channels);
  return x;
}

// dropout_backward(Tensor dy, Tensor keep, float p, bool channels, bool channels_last) -> Tensor
Tensor dropout_backward(const Tensor& dy, const Tensor& keep, double p, bool channels, bool channels_last) {
  const Tensor dx = allocate(sizes_of(dy), dy.options(), format(channels_last));
  if (dy.is_meta() || dx.numel() == 0) return dx;
  apply_keep(contiguous(dy, format(channels_last)), keep, shape_of(dy.sizes(), channels_last), p, channels, dx);
  return dx;
}

struct DropoutGradient {
  static std::tuple<Tensor, Tensor> forward(Recording* call, const Tensor& x, const Tensor& seed, double p,
                                            bool channels) {
    const auto [y, keep] = DLK_OP(dropout).call(x, seed, p, channels);
    call->save_values(p, channels, is_channels_last(x));
    call->save_for_backward({keep});
    return {y, keep};
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto [p, channels, channels_last] = call->saved_values<double, bool, bool>();
    const Tensor keep = call->saved_tensors()[0];
    return {DLK_OP(dropout_backward).call(dy, keep, p, channels, channels_last)};
  }
};

/// With one output, as whatever changes a view must have.
struct InplaceDropoutGradient {
  static Tensor forward(Recording* call, Tensor x, const Tensor& seed, double p, bool channels) {
    call->save_values(p, channels, is_channels_last(x));
    call->save_for_backward({drop_inplace(x, seed, p, channels)});
    return x;
  }

  static variable_list backward(Recording* call, const Tensor& dy) { return DropoutGradient::backward(call, dy); }
};

/// The mask is constant: backward is linear in dy and its own derivative.
struct DropoutBackwardGradient {
  static Tensor forward(Recording* call, const Tensor& dy, const Tensor& keep, double p, bool channels,
                        bool channels_last) {
    call->save_values(p, channels, channels_last);
    call->save_for_backward({keep});
    return DLK_OP(dropout_backward).call(dy, keep, p, channels, channels_last);
  }

  static variable_list backward(Recording* call, const Tensor& dy) { return DropoutGradient::backward(call, dy); }
};

Counter dropout_calls("dropout"), dropout2d_calls("dropout2d");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def("dropout(Tensor x, Tensor seed, float p, bool channels) -> (Tensor, Tensor)");
  m.def("dropout_(Tensor(a!) x, Tensor seed, float p, bool channels) -> Tensor(a!)");
  m.def("dropout_backward(Tensor dy, Tensor keep, float p, bool channels, bool channels_last) -> Tensor");
}
DLK_IMPL(dropout, DropoutGradient)
DLK_IMPL_INPLACE(dropout_, InplaceDropoutGradient)
DLK_IMPL(dropout_backward, DropoutBackwardGradient)

Tensor dropout_entry(const Tensor& input, double p, bool training, bool inplace, bool channels) {
  Counter& calls = channels ? dropout2d_calls : dropout_calls;
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, calls.op, ": p, a probability, must be between 0 and 1, got ", p);
  Tensor x = input;
  // Nothing to draw: PyTorch's gives the input itself, or for p = 1 zeros.
  const bool drawn = training && p > 0 && p < 1 && x.sym_numel() != 0;
  // A traced in-place op: see activation.cpp.
  const bool traced = inplace && x.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
  if (!drawn || !covered(calls, {x}, !traced && (!channels || x.dim() >= 2))) {
    if (channels) return inplace ? at::feature_dropout_(x, p, training) : at::feature_dropout(x, p, training);
    return inplace ? at::dropout_(x, p, training) : at::dropout(x, p, training);
  }
  // One draw from the default generator of x's device: torch.manual_seed governs it and checkpoint restores it. By
  // PyTorch's op, which torch.compile knows not to merge or repeat, so that ours are functions of their arguments.
  const Tensor seed = at::randint(std::numeric_limits<int64_t>::max(), {}, x.options().dtype(at::kLong));
  return inplace ? DLK_OP(dropout_).call(x, seed, p, channels)
                 : std::get<0>(DLK_OP(dropout).call(x, seed, p, channels));
}

}  // namespace dlk::bindings
