// Pooling: dlkernels::max_pool2d and ::avg_pool2d (sliding and adaptive), their backward ops, and max pooling's
// indices.
//
// The ops take a window as ints: {R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, ceil_mode}, or
// {OH, OW} for adaptive pooling; the backward ops also the input's sizes, for no values of it are saved.
#include "csrc/core/pool2d.h"

#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <limits>

#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

using at::IntArrayRef;
using Saved = std::vector<int64_t>;

// ---- Geometry

/// One or two ints as a pair (vertical, horizontal).
std::array<int64_t, 2> pair(const char* op, const char* name, IntArrayRef values) {
  TORCH_CHECK(values.size() == 1 || values.size() == 2, op, ": ", name,
              " must be a single int or a tuple of two ints, got ", values);
  for (const int64_t value : values)
    TORCH_CHECK(std::abs(value) <= std::numeric_limits<int32_t>::max(), op, ": ", name, " must fit in 32 bits, got ",
                values);
  return {values.front(), values.back()};
}

/// {N, C, H, W} of a 4-D input, or of a 3-D one, which has no N.
std::array<int64_t, 4> image_sizes(const char* op, IntArrayRef sizes) {
  TORCH_CHECK(sizes.size() == 3 || sizes.size() == 4, op,
              ": input must be 3-D (C, H, W) or 4-D (N, C, H, W), got sizes ", sizes);
  const size_t c = sizes.size() - 3;
  return {c == 1 ? sizes[0] : 1, sizes[c], sizes[c + 1], sizes[c + 2]};
}

/// The number of windows along an axis. With ceil_mode the last may reach beyond the padding but must start before it.
int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode) {
  const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  const int64_t out = room / stride + 1;
  return ceil_mode && (out - 1) * stride >= in + pad ? out - 1 : out;
}

Pool2d sliding_geometry(const char* op, IntArrayRef sizes, IntArrayRef window) {
  TORCH_CHECK(window.size() == 9, op, ": a window is 9 ints, got ", window);
  const IntArrayRef kernel = window.slice(0, 2), stride = window.slice(2, 2), pad = window.slice(4, 2),
                    dilation = window.slice(6, 2);
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK(kernel[i] > 0, op, ": kernel_size must be greater than zero, got ", kernel);
    TORCH_CHECK(stride[i] > 0, op, ": stride must be greater than zero, got ", stride);
    TORCH_CHECK(dilation[i] > 0, op, ": dilation must be greater than zero, got ", dilation);
    TORCH_CHECK(pad[i] >= 0, op, ": padding must not be negative, got ", pad);
    TORCH_CHECK(pad[i] <= kernel[i] / 2, op, ": padding must be at most half of kernel_size, got padding ", pad,
                " for kernel_size ", kernel);
  }
  const auto [N, C, H, W] = image_sizes(op, sizes);
  TORCH_CHECK(C > 0 && H > 0 && W > 0, op, ": only the batch size of input may be 0, got sizes ", sizes);
  const bool ceil_mode = window[8];
  const int64_t OH = output_size(H, kernel[0], stride[0], pad[0], dilation[0], ceil_mode);
  const int64_t OW = output_size(W, kernel[1], stride[1], pad[1], dilation[1], ceil_mode);
  TORCH_CHECK(OH > 0 && OW > 0, op, ": the output of an input of sizes ", sizes, " would be ", OH, " x ", OW,
              ": too small for kernel_size ", kernel, " with padding ", pad, " and dilation ", dilation);
  Pool2d p{.N = N, .C = C, .H = H, .W = W, .OH = OH, .OW = OW, .R = kernel[0], .S = kernel[1]};
  // A stride that leaves the input at once is as good as any greater one, and bounds the kernels' buffers.
  p.stride_h = std::min(stride[0], H + 2 * pad[0]), p.stride_w = std::min(stride[1], W + 2 * pad[1]);
  p.pad_h = pad[0], p.pad_w = pad[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  return p;
}

AvgPool2d avg_geometry(IntArrayRef sizes, IntArrayRef window, bool count_include_pad, int64_t divisor_override) {
  if (window.size() != 2)
    return {sliding_geometry("avg_pool2d", sizes, window), /*adaptive=*/false, count_include_pad, divisor_override};
  constexpr const char* op = "adaptive_avg_pool2d";
  TORCH_CHECK(window[0] >= 0 && window[1] >= 0, op, ": output_size must not be negative, got ", window);
  const auto [N, C, H, W] = image_sizes(op, sizes);
  TORCH_CHECK(H > 0 && W > 0, op, ": the height and width of input must not be 0, got sizes ", sizes);
  return {{.N = N, .C = C, .H = H, .W = W, .OH = window[0], .OW = window[1]}, /*adaptive=*/true};
}

/// {N, C, rows, columns}, or {C, rows, columns} if `like` has no N.
at::DimVector image_like(IntArrayRef like, int64_t rows, int64_t columns) {
  at::DimVector sizes(like.begin(), like.end());
  sizes[sizes.size() - 2] = rows;
  sizes[sizes.size() - 1] = columns;
  return sizes;
}

/// channels_last where PyTorch's pooling gives it: on 4-D input only.
bool channels_last(const Tensor& x) { return x.dim() == 4 && is_channels_last(x); }

// ---- Max pooling

Positions positions_of(const Tensor& positions) {
  if (positions.numel() == 0) return {};
  if (positions.scalar_type() == at::kByte) return {positions.mutable_data_ptr<uint8_t>(), nullptr};
  return {nullptr, positions.mutable_data_ptr<int32_t>()};
}

// max_pool2d(Tensor x, int[] window, bool want_positions) -> (Tensor y, Tensor positions)
// Positions as in core/pool2d.h; empty if not wanted.
std::tuple<Tensor, Tensor> max_pool2d(const Tensor& x, IntArrayRef window, bool want_positions) {
  const at::DimVector x_sizes = sizes_of(x);
  Pool2d p = sliding_geometry("max_pool2d", x_sizes, window);
  p.channels_last = channels_last(x);
  const at::DimVector y_sizes = image_like(x_sizes, p.OH, p.OW);
  const Tensor y = allocate(y_sizes, x.options(), format(p.channels_last));
  const auto options = x.options().dtype(p.R * p.S <= 255 ? at::kByte : at::kInt);
  const Tensor positions =
      want_positions ? allocate(y_sizes, options, format(p.channels_last)) : allocate({0}, options);
  if (x.is_meta() || y.numel() == 0) return {y, positions};
  const Tensor xs = contiguous(x, format(p.channels_last));
  with_kernels<MaxPool2dKernels>(x, [&]<class T>(const MaxPool2dKernels<T>& kernels, Context& context) {
    kernels.forward(p, const_data<T>(xs), mutable_data<T>(y), positions_of(positions), context);
  });
  return {y, positions};
}

// max_pool2d_backward(Tensor dy, Tensor positions, int[] x_sizes, bool x_channels_last, int[] window) -> Tensor
Tensor max_pool2d_backward(const Tensor& dy, const Tensor& positions, IntArrayRef x_sizes, bool x_channels_last,
                           IntArrayRef window) {
  Pool2d p = sliding_geometry("max_pool2d", x_sizes, window);
  p.channels_last = x_channels_last;
  const Tensor dx = allocate(x_sizes, dy.options(), format(p.channels_last));
  if (dy.is_meta() || dx.numel() == 0) return dx;
  const Tensor dys = contiguous(dy, format(p.channels_last));
  const Tensor at = contiguous(positions, format(p.channels_last));
  with_kernels<MaxPool2dKernels>(dx, [&]<class T>(const MaxPool2dKernels<T>& kernels, Context& context) {
    kernels.backward(p, const_data<T>(dys), positions_of(at), mutable_data<T>(dx), context);
  });
  return dx;
}

// max_pool2d_indices(Tensor positions, int[] x_sizes, bool x_channels_last, int[] window) -> Tensor
// The int64 indices into the H x W plane, -1 for windows wholly in the padding.
Tensor max_pool2d_indices(const Tensor& positions, IntArrayRef x_sizes, bool x_channels_last, IntArrayRef window) {
  Pool2d p = sliding_geometry("max_pool2d", x_sizes, window);
  p.channels_last = x_channels_last;
  const Tensor indices =
      allocate(image_like(x_sizes, p.OH, p.OW), positions.options().dtype(at::kLong), format(p.channels_last));
  if (positions.is_meta() || indices.numel() == 0) return indices;
  const Tensor at = contiguous(positions, format(p.channels_last));
  with_kernels<MaxPool2dIndexKernels>(indices, [&](const MaxPool2dIndexKernels& kernels, Context& context) {
    kernels.indices(p, positions_of(at), indices.mutable_data_ptr<int64_t>(), context);
  });
  return indices;
}

struct MaxPool2dGradient {
  static std::tuple<Tensor, Tensor> forward(Recording* call, const Tensor& x, IntArrayRef window,
                                            bool /*want_positions*/) {
    const auto [y, positions] = DLK_OP(max_pool2d).call(x, window, /*want_positions=*/true);  // backward does
    call->save_values(IntArrayRef(sizes_of(x)), channels_last(x), window);
    call->save_for_backward({positions});
    return {y, positions};
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const Tensor positions = call->saved_tensors()[0];
    const auto [x_sizes, x_channels_last, window] = call->saved_values<Saved, bool, Saved>();
    if (!create_graph()) return {DLK_OP(max_pool2d_backward).call(dy, positions, x_sizes, x_channels_last, window)};
    const Tensor indices = DLK_OP(max_pool2d_indices).call(positions, x_sizes, x_channels_last, window);
    const Tensor found = dy.masked_fill(indices < 0, 0).flatten(-2);
    const Tensor zeros = at::zeros(x_sizes, dy.options()).flatten(-2);
    const Tensor dx = zeros.scatter_add(-1, indices.clamp_min(0).flatten(-2), found);
    return {dx.view(x_sizes)};
  }
};

// ---- Average pooling

// avg_pool2d(Tensor x, int[] window, bool count_include_pad, int divisor_override) -> Tensor
// divisor_override 0: none.
Tensor avg_pool2d(const Tensor& x, IntArrayRef window, bool count_include_pad, int64_t divisor_override) {
  const at::DimVector x_sizes = sizes_of(x);
  AvgPool2d p = avg_geometry(x_sizes, window, count_include_pad, divisor_override);
  p.channels_last = channels_last(x);
  const Tensor y = allocate(image_like(x_sizes, p.OH, p.OW), x.options(), format(p.channels_last));
  if (x.is_meta() || y.numel() == 0) return y;
  const Tensor xs = contiguous(x, format(p.channels_last));
  with_kernels<AvgPool2dKernels>(x, [&]<class T>(const AvgPool2dKernels<T>& kernels, Context& context) {
    kernels.forward(p, const_data<T>(xs), mutable_data<T>(y), context);
  });
  return y;
}

// avg_pool2d_backward(Tensor dy, int[] x_sizes, bool x_channels_last, int[] window, bool count_include_pad,
//                     int divisor_override) -> Tensor
Tensor avg_pool2d_backward(const Tensor& dy, IntArrayRef x_sizes, bool x_channels_last, IntArrayRef window,
                           bool count_include_pad, int64_t divisor_override) {
  AvgPool2d p = avg_geometry(x_sizes, window, count_include_pad, divisor_override);
  p.channels_last = x_channels_last;
  const Tensor dx = allocate(x_sizes, dy.options(), format(p.channels_last));
  if (dy.is_meta() || dx.numel() == 0) return dx;
  if (dy.numel() == 0) return dx.zero_();
  const Tensor dys = contiguous(dy, format(p.channels_last));
  with_kernels<AvgPool2dKernels>(dx, [&]<class T>(const AvgPool2dKernels<T>& kernels, Context& context) {
    kernels.backward(p, const_data<T>(dys), mutable_data<T>(dx), context);
  });
  return dx;
}

// Average pooling is linear: the derivative of backward is forward, so each op records itself and calls the other.

struct AvgPool2dGradient {
  static Tensor forward(Recording* call, const Tensor& x, IntArrayRef window, bool count_include_pad,
                        int64_t divisor_override) {
    call->save_values(IntArrayRef(sizes_of(x)), channels_last(x), window, count_include_pad, divisor_override);
    return DLK_OP(avg_pool2d).call(x, window, count_include_pad, divisor_override);
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto [x_sizes, x_channels_last, window, count_include_pad, divisor_override] =
        call->saved_values<Saved, bool, Saved, bool, int64_t>();
    const Tensor dx =
        DLK_OP(avg_pool2d_backward).call(dy, x_sizes, x_channels_last, window, count_include_pad, divisor_override);
    return {dx};
  }
};

struct AvgPool2dBackwardGradient {
  static Tensor forward(Recording* call, const Tensor& dy, IntArrayRef x_sizes, bool x_channels_last,
                        IntArrayRef window, bool count_include_pad, int64_t divisor_override) {
    call->save_values(window, count_include_pad, divisor_override);
    return DLK_OP(avg_pool2d_backward).call(dy, x_sizes, x_channels_last, window, count_include_pad, divisor_override);
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto [window, count_include_pad, divisor_override] = call->saved_values<Saved, bool, int64_t>();
    const Tensor ddy = DLK_OP(avg_pool2d).call(dy, window, count_include_pad, divisor_override);
    return {ddy};
  }
};

Counter max_pool2d_calls("max_pool2d"), avg_pool2d_calls("avg_pool2d"),
    adaptive_avg_pool2d_calls("adaptive_avg_pool2d");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def("max_pool2d(Tensor x, int[] window, bool want_positions) -> (Tensor, Tensor)");
  m.def(
      "max_pool2d_backward(Tensor dy, Tensor positions, int[] x_sizes, bool x_channels_last, int[] window) -> Tensor");
  m.def("max_pool2d_indices(Tensor positions, int[] x_sizes, bool x_channels_last, int[] window) -> Tensor");
  m.def("avg_pool2d(Tensor x, int[] window, bool count_include_pad, int divisor_override) -> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor dy, int[] x_sizes, bool x_channels_last, int[] window, bool count_include_pad, "
      "int divisor_override) -> Tensor");
}
DLK_IMPL(max_pool2d, MaxPool2dGradient)
DLK_IMPL_BACKWARD(max_pool2d_backward)
DLK_IMPL_BACKWARD(max_pool2d_indices)
DLK_IMPL(avg_pool2d, AvgPool2dGradient)
DLK_IMPL(avg_pool2d_backward, AvgPool2dBackwardGradient)

namespace {

IntArrayRef ints(const char* op, const char* name, const Ints& given) {
  TORCH_CHECK_TYPE(given.wrong.empty(), op, ": ", name, " must be an int or a tuple of ints, got ", given.wrong);
  return given.values;
}

/// The functions' arguments.
struct Arguments {
  IntArrayRef kernel_size, stride, padding, dilation;  // stride: empty if not given
  bool ceil_mode;

  /// As the ops take them.
  std::array<int64_t, 9> window(const char* op) const {
    const auto kernel = pair(op, "kernel_size", kernel_size), pad = pair(op, "padding", padding);
    const auto step = stride.empty() ? kernel : pair(op, "stride", stride), spread = pair(op, "dilation", dilation);
    return {kernel[0], kernel[1], step[0], step[1], pad[0], pad[1], spread[0], spread[1], ceil_mode};
  }

  /// A position within a window is kept in 32 bits. Sizes that are refused anyway are left to window's message.
  bool positions_fit() const {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    const int64_t r = kernel_size.empty() ? 1 : kernel_size.front(), s = kernel_size.empty() ? 1 : kernel_size.back();
    const bool refused = r <= 0 || s <= 0 || r > kMost || s > kMost;
    return refused || r <= kMost / s;
  }
};

Arguments arguments(const char* op, const Ints& kernel_size, const std::optional<Ints>& stride, const Ints& padding,
                    const Ints& dilation, bool ceil_mode) {
  return {ints(op, "kernel_size", kernel_size), stride ? ints(op, "stride", *stride) : IntArrayRef{},
          ints(op, "padding", padding), ints(op, "dilation", dilation), ceil_mode};
}

}  // namespace

Tensor max_pool2d_entry(const Tensor& input, const Ints& kernel_size, const std::optional<Ints>& stride,
                        const Ints& padding, const Ints& dilation, bool ceil_mode) {
  constexpr const char* op = "max_pool2d";
  const Arguments a = arguments(op, kernel_size, stride, padding, dilation, ceil_mode);
  if (!covered(max_pool2d_calls, {input}, a.positions_fit()))
    return at::max_pool2d(input, a.kernel_size, a.stride, a.padding, a.dilation, ceil_mode);
  return std::get<0>(DLK_OP(max_pool2d).call(input, a.window(op), /*want_positions=*/false));
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices_entry(const Tensor& input, const Ints& kernel_size,
                                                         const std::optional<Ints>& stride, const Ints& padding,
                                                         const Ints& dilation, bool ceil_mode) {
  constexpr const char* op = "max_pool2d";
  const Arguments a = arguments(op, kernel_size, stride, padding, dilation, ceil_mode);
  if (!covered(max_pool2d_calls, {input}, a.positions_fit()))
    return at::max_pool2d_with_indices(input, a.kernel_size, a.stride, a.padding, a.dilation, ceil_mode);
  const auto window = a.window(op);
  const auto [y, positions] = DLK_OP(max_pool2d).call(input, window, /*want_positions=*/true);
  return {y, DLK_OP(max_pool2d_indices).call(positions, sizes_of(input), channels_last(input), window)};
}

Tensor avg_pool2d_entry(const Tensor& input, const Ints& kernel_size, const std::optional<Ints>& stride,
                        const Ints& padding, bool ceil_mode, bool count_include_pad,
                        std::optional<int64_t> divisor_override) {
  constexpr const char* op = "avg_pool2d";
  const Ints dilation{.values = {1}};
  const Arguments a = arguments(op, kernel_size, stride, padding, dilation, ceil_mode);
  if (!covered(avg_pool2d_calls, {input}))
    return at::avg_pool2d(input, a.kernel_size, a.stride, a.padding, ceil_mode, count_include_pad, divisor_override);
  TORCH_CHECK(divisor_override != 0, op, ": divisor_override must not be zero");
  return DLK_OP(avg_pool2d).call(input, a.window(op), count_include_pad, divisor_override.value_or(0));
}

Tensor adaptive_avg_pool2d_entry(const Tensor& input, const Ints& output_size) {
  constexpr const char* op = "adaptive_avg_pool2d";
  const IntArrayRef size = ints(op, "output_size", output_size);
  TORCH_CHECK(size.size() == 2, op, ": output_size must be an int or two, got ", size);
  if (!covered(adaptive_avg_pool2d_calls, {input})) return at::adaptive_avg_pool2d(input, size);
  return DLK_OP(avg_pool2d).call(input, size, /*count_include_pad=*/true, /*divisor_override=*/0);
}

}  // namespace dlk::bindings
