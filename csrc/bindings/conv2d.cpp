// conv1d, conv2d and conv_transpose2d, on three ops: the convolution, its gradient to the input (which is also the
// transposed convolution) and its gradient to the weight. A 1-D convolution is a 2-D one of height 1.
#include "csrc/core/conv2d.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "csrc/bindings/channel_sum.h"
#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"

namespace dlk::bindings {
namespace {

/// What the ops take as one list: stride (h, w), padding (top, bottom, left, right), dilation (h, w), groups.
struct Geometry {
  int64_t stride[2], padding[4], dilation[2], groups;

  static constexpr int64_t kLength = 9;

  explicit Geometry(at::IntArrayRef l) {
    TORCH_CHECK(l.size() == kLength, "convolution: geometry must be a list of ", kLength, " integers, got ", l);
    *this = Geometry({l[0], l[1]}, {l[2], l[3], l[4], l[5]}, {l[6], l[7]}, l[8]);
  }
  Geometry(at::IntArrayRef s, std::array<int64_t, 4> p, at::IntArrayRef d, int64_t g)
      : stride{s[0], s[1]}, padding{p[0], p[1], p[2], p[3]}, dilation{d[0], d[1]}, groups(g) {}

  std::array<int64_t, kLength> list() const {
    return {stride[0], stride[1], padding[0], padding[1], padding[2], padding[3], dilation[0], dilation[1], groups};
  }
};

/// The kernels' description of the convolution of x (N, C, H, W) with w (K, C / groups, R, S).
Conv2d describe(at::IntArrayRef x, at::IntArrayRef w, const Geometry& g) {
  const auto out = [&](int axis, int64_t size, int64_t kernel) {
    const int64_t room = size + g.padding[2 * axis] + g.padding[2 * axis + 1] - g.dilation[axis] * (kernel - 1) - 1;
    return room < 0 ? 0 : room / g.stride[axis] + 1;
  };
  Conv2d p{};
  p.N = x[0], p.C = x[1], p.H = x[2], p.W = x[3];
  p.K = w[0], p.R = w[2], p.S = w[3];
  p.OH = out(0, p.H, p.R), p.OW = out(1, p.W, p.S);
  p.stride_h = g.stride[0], p.stride_w = g.stride[1];
  p.pad_h = g.padding[0], p.pad_w = g.padding[2];
  p.dilation_h = g.dilation[0], p.dilation_w = g.dilation[1];
  p.groups = g.groups;
  return p;
}

/// Fills in what describe() cannot know. A stride or dilation that nothing is multiplied with becomes 1, since kernels
/// size their buffers by them.
void complete(Conv2d& p, at::MemoryFormat format, const Tensor& w) {
  if (p.OH == 1) p.stride_h = 1;
  if (p.OW == 1) p.stride_w = 1;
  if (p.R == 1) p.dilation_h = 1;
  if (p.S == 1) p.dilation_w = 1;
  p.channels_last = format == at::MemoryFormat::ChannelsLast;
  p.allow_tf32 = allow_tf32(w, /*convolution=*/true);
  p.w_k = w.stride(0), p.w_c = w.stride(1), p.w_r = w.stride(2), p.w_s = w.stride(3);
}

/// channels_last if either operand is, as PyTorch's convolutions choose.
at::MemoryFormat format_of_either(const Tensor& x, const Tensor& w) {
  return format_of(x) == at::MemoryFormat::ChannelsLast ? format_of(x) : format_of(w);
}

Tensor dense(const Tensor& w) { return w.is_non_overlapping_and_dense() ? w : w.contiguous(); }

// convolution(Tensor x, Tensor w, Tensor? bias, int[] geometry) -> Tensor
Tensor convolution(const Tensor& x, const Tensor& w, const OptionalTensor& bias, at::IntArrayRef geometry) {
  Conv2d p = describe(sizes_of(x), sizes_of(w), Geometry(geometry));
  const at::MemoryFormat format = format_of_either(x, w);
  const Tensor y = allocate({p.N, p.K, p.OH, p.OW}, x.options(), format);
  if (y.is_meta() || y.numel() == 0) return y;
  const Tensor xs = contiguous(x, format), ws = dense(w), b = bias ? bias->contiguous() : Tensor();
  complete(p, format, ws);
  with_kernels<Conv2dKernels>(x, [&]<class T>(const Conv2dKernels<T>& kernels, Context& context) {
    kernels.forward(p, const_data<T>(xs), const_data<T>(ws), const_data<T>(b), mutable_data<T>(y), context);
  });
  return y;
}

// convolution_backward_input(Tensor dy, Tensor w, Tensor? bias, int[] x_size, int[] geometry) -> Tensor
Tensor convolution_backward_input(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, at::IntArrayRef x_size,
                                  at::IntArrayRef geometry) {
  Conv2d p = describe(x_size, sizes_of(w), Geometry(geometry));
  const auto dy_size = sizes_of(dy);
  p.OH = dy_size[2], p.OW = dy_size[3];
  const at::MemoryFormat format = format_of_either(dy, w);
  const Tensor dx = allocate(x_size, dy.options(), format);
  if (dx.is_meta() || dx.numel() == 0) return dx;
  const Tensor dys = contiguous(dy, format), ws = dense(w), b = bias ? bias->contiguous() : Tensor();
  complete(p, format, ws);
  with_kernels<Conv2dKernels>(dy, [&]<class T>(const Conv2dKernels<T>& kernels, Context& context) {
    kernels.backward_input(p, const_data<T>(dys), const_data<T>(ws), const_data<T>(b), mutable_data<T>(dx), context);
  });
  return dx;
}

// convolution_backward_weight(Tensor x, Tensor dy, Tensor w, int[] geometry) -> Tensor: w gives shape and strides
Tensor convolution_backward_weight(const Tensor& x, const Tensor& dy, const Tensor& w, at::IntArrayRef geometry) {
  Conv2d p = describe(sizes_of(x), sizes_of(w), Geometry(geometry));
  const auto dy_size = sizes_of(dy);
  p.OH = dy_size[2], p.OW = dy_size[3];
  const Tensor dw = allocate_like(w);
  if (dw.is_meta() || dw.numel() == 0) return dw;
  if (x.numel() == 0 || dy.numel() == 0) return dw.zero_();
  const at::MemoryFormat format = format_of_either(x, dy);
  const Tensor xs = contiguous(x, format), dys = contiguous(dy, format);
  complete(p, format, dw);
  with_kernels<Conv2dWeightKernels>(x, [&]<class T>(const Conv2dWeightKernels<T>& kernels, Context& context) {
    kernels.backward_weight(p, const_data<T>(xs), const_data<T>(dys), mutable_data<T>(dw), context);
  });
  return dw;
}

/// Sum of dy over all but its channels.
Tensor bias_gradient(const Tensor& dy) {
  if (create_graph()) return dy.sum({0, 2, 3});
  if (format_of(dy) == at::MemoryFormat::ChannelsLast)
    return channel_sum_op(dy.permute({0, 2, 3, 1}).flatten(0, 2).unsqueeze(2));
  return channel_sum_op(dy.flatten(2));
}

/// x with the zeros that 'same' wants after it and not before: PyTorch's convolutions pad both sides alike.
Tensor pad_uneven(const Tensor& x, at::IntArrayRef pad) {
  const bool even = std::all_of(pad.begin(), pad.end(), [](int64_t n) { return n == 0; });
  return even ? x : at::constant_pad_nd(x, pad);
}

/// PyTorch's convolution, for inputs that are not covered and for gradients of gradients.
Tensor reference(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const Geometry& g) {
  const auto& pad = g.padding;
  return at::conv2d(pad_uneven(x, {0, pad[3] - pad[2], 0, pad[1] - pad[0]}), w, bias, g.stride,
                    at::IntArrayRef({pad[0], pad[2]}), g.dilation, g.groups);
}

/// PyTorch's transposed convolution to an image of size x_size: the full one, less the padding.
Tensor reference_transposed(const Tensor& dy, const Tensor& w, const OptionalTensor& bias, at::IntArrayRef x_size,
                            const Geometry& g) {
  const auto full = at::conv_transpose2d(dy, w, {}, g.stride, 0, 0, g.groups, g.dilation);
  const auto pad_to = [&](int axis) { return x_size[2 + axis] - full.size(2 + axis) + g.padding[2 * axis]; };
  const Tensor x = at::constant_pad_nd(full, {-g.padding[2], pad_to(1), -g.padding[0], pad_to(0)});
  return bias ? x + bias->view({1, -1, 1, 1}) : x;
}

using Ints = std::vector<int64_t>;

/// Saves the operands that gradients need: x only for that to w, which also needs w's shape and strides.
void save_operands(Recording* call, const Tensor& x, const Tensor& w) {
  call->save_for_backward({w.requires_grad() ? x : Tensor(), w});
}

/// The x to differentiate at: the convolutions are linear in it, so where it was not saved any values do.
Tensor saved_or_zeros(const Tensor& x, at::IntArrayRef x_size, const Tensor& dy) {
  return x.defined() ? x : at::zeros(x_size, dy.options()).requires_grad_();
}

/// Which of x, w, bias a backward pass needs gradients of.
std::vector<bool> needs(Recording* call, bool has_bias) {
  return {call->needs_gradient(0), call->needs_gradient(1), has_bias && call->needs_gradient(2)};
}

struct ConvolutionGradient {
  static Tensor forward(Recording* call, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        at::IntArrayRef geometry) {
    save_operands(call, x, w);
    call->save_values(bias.has_value(), at::IntArrayRef(sizes_of(x)), geometry);
    return DLK_OP(convolution).call(x, w, bias, geometry);
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto saved = call->saved_tensors();
    const Tensor &x = saved[0], &w = saved[1];
    const auto [has_bias, x_size, geometry] = call->saved_values<bool, Ints, Ints>();
    const auto need = needs(call, has_bias);
    Tensor dx, dw, db;
    if (create_graph()) {
      const auto d = differentiable_gradients(
          {saved_or_zeros(x, x_size, dy), w}, {need[0], need[1]}, dy,
          [&](const variable_list& in) { return reference(in[0], in[1], {}, Geometry(geometry)); });
      dx = d[0], dw = d[1];
    } else {
      if (need[0]) dx = DLK_OP(convolution_backward_input).call(dy, w, {}, x_size, geometry);
      if (need[1]) dw = DLK_OP(convolution_backward_weight).call(x, dy, w, geometry);
    }
    if (need[2]) db = bias_gradient(dy);
    return {dx, dw, db, Tensor()};
  }
};

struct TransposedConvolutionGradient {
  static Tensor forward(Recording* call, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        at::IntArrayRef y_size, at::IntArrayRef geometry) {
    save_operands(call, x, w);
    call->save_values(bias.has_value(), at::IntArrayRef(sizes_of(x)), y_size, geometry);
    return DLK_OP(convolution_backward_input).call(x, w, bias, y_size, geometry);
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto saved = call->saved_tensors();
    const Tensor &x = saved[0], &w = saved[1];
    const auto [has_bias, x_size, y_size, geometry] = call->saved_values<bool, Ints, Ints, Ints>();
    const auto need = needs(call, has_bias);
    Tensor dx, dw, db;
    if (create_graph()) {
      const auto d = differentiable_gradients(
          {saved_or_zeros(x, x_size, dy), w}, {need[0], need[1]}, dy,
          [&](const variable_list& in) { return reference_transposed(in[0], in[1], {}, y_size, Geometry(geometry)); });
      dx = d[0], dw = d[1];
    } else {
      // x is what the convolution of y would give: the operands swap roles.
      if (need[0]) dx = DLK_OP(convolution).call(dy, w, {}, geometry).narrow(2, 0, x_size[2]).narrow(3, 0, x_size[3]);
      if (need[1]) dw = DLK_OP(convolution_backward_weight).call(dy, x, w, geometry);
    }
    if (need[2]) db = bias_gradient(dy);
    return {dx, dw, db, Tensor(), Tensor()};
  }
};

// ---- Checks of the entry points

/// Larger sizes are refused, so that no product of two of them overflows.
constexpr int64_t kMostParameter = (int64_t{1} << 31) - 1;

void check_parameter(const char* op, const char* name, at::IntArrayRef values, int64_t least) {
  for (const int64_t value : values)
    TORCH_CHECK(value >= least && value <= kMostParameter, op, ": ", name, " must be ",
                least > 0 ? "positive" : "non-negative", " and below 2^31, got ", values);
}

void check_geometry(const char* op, const Geometry& g) {
  check_parameter(op, "stride", g.stride, 1);
  check_parameter(op, "padding", g.padding, 0);
  check_parameter(op, "dilation", g.dilation, 1);
  check_parameter(op, "groups", g.groups, 1);
}

/// Whether the kernels can number what this convolution has: the elements of each tensor and the pixels along each axis
/// of the padded image (for the transposed one, of the result). What the checks here refuse may be countable.
bool countable(size_t spatial, const Tensor& x, const Tensor& w, const Geometry& g, bool transposed = false,
               std::array<int64_t, 2> output_padding = {}) {
  if (!counts_in_32_bits(x) || x.is_nested() || w.is_nested()) return true;  // nested: not covered
  const auto xs = sizes_of(x), ws = sizes_of(w);
  const auto beyond = [](int64_t value) { return value > kMostParameter; };
  if (xs.size() < spatial + 1 || ws.size() != spatial + 2 || std::ranges::any_of(g.list(), beyond)) return true;
  const auto elements = [](at::IntArrayRef sizes) {
    return std::accumulate(sizes.begin(), sizes.end(), 1.0, std::multiplies<>());
  };
  double y = xs.size() == spatial + 2 ? xs[0] : 1, longest = 0;
  y *= transposed ? static_cast<double>(ws[1]) * g.groups : ws[0];
  for (size_t i = 0; i < spatial; ++i) {
    const size_t axis = 2 - spatial + i;
    const double size = xs[xs.size() - spatial + i], padding = g.padding[2 * axis] + g.padding[2 * axis + 1],
                 stride = std::max<int64_t>(g.stride[axis], 1), reach = g.dilation[axis] * (ws[2 + i] - 1.0) + 1;
    const double padded = transposed ? (size - 1) * stride + reach + output_padding[axis] : size + padding;
    y *= transposed ? padded - padding : (padded - reach) / stride + 1;
    longest = std::max(longest, padded);
  }
  // Twice the longest: kernels take a pixel so far above the image for one that sees nothing of it.
  return fit_32_bits({elements(xs), elements(ws), y, 2 * longest});
}

/// `x_channels`: the dimension of w that, in all groups together, gives the channels of x; the other gives the bias.
void check_operands(const char* op, int64_t spatial, at::IntArrayRef x, at::IntArrayRef w, const OptionalTensor& bias,
                    const Geometry& g, bool transposed) {
  const auto rank = static_cast<int64_t>(x.size());
  TORCH_CHECK(rank == spatial + 1 || rank == spatial + 2, "Expected ", spatial + 1, "D (unbatched) or ", spatial + 2,
              "D (batched) input to ", op, ", but got input of size: ", x);
  TORCH_CHECK(static_cast<int64_t>(w.size()) == spatial + 2, op, ": weight must be ", spatial + 2, "-D, got shape ", w);
  for (int64_t i = 2; i < spatial + 2; ++i)
    TORCH_CHECK(w[i] > 0 && w[i] <= kMostParameter, op, ": the kernel must not be empty, got weight of shape ", w);
  TORCH_CHECK(w[0] > 0 && w[0] % g.groups == 0, op, ": weight.size(0) must be a positive multiple of groups=", g.groups,
              ", got weight of shape ", w);
  const int64_t C = x[rank - spatial - 1], expected = transposed ? w[0] : w[1] * g.groups;
  TORCH_CHECK(C == expected, "Given groups=", g.groups, ", weight of size ", w, ", expected input", x, " to have ",
              expected, " channels, but got ", C, " channels instead");
  const int64_t outputs = transposed ? w[1] * g.groups : w[0];
  if (bias)
    TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == outputs, op, ": bias must have shape (", outputs, ",), got ",
                bias->sym_sizes());
}

Tensor convolve(const char* op, int64_t spatial, const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                const Geometry& g) {
  check_geometry(op, g);
  const auto xs = sizes_of(x), ws = sizes_of(w);
  check_operands(op, spatial, xs, ws, bias, g, /*transposed=*/false);
  const bool batched = static_cast<int64_t>(xs.size()) == spatial + 2;
  Tensor images = batched ? x : x.unsqueeze(0), filters = w;
  if (spatial == 1) images = images.unsqueeze(2), filters = filters.unsqueeze(2);
  const Conv2d p = describe(sizes_of(images), sizes_of(filters), g);
  const int64_t padded[] = {p.H + g.padding[0] + g.padding[1], p.W + g.padding[2] + g.padding[3]};
  TORCH_CHECK(p.OH > 0 && p.OW > 0, "Calculated padded input size per channel: (", padded[0], " x ", padded[1],
              "). Kernel size: (", p.dilation_h * (p.R - 1) + 1, " x ", p.dilation_w * (p.S - 1) + 1,
              "). Kernel size can't be greater than actual input size");
  constexpr int64_t kMostPadded = int64_t{1} << 40;
  TORCH_CHECK(padded[1] <= kMostPadded / padded[0], op, ": padding gives images of ", padded[0], " x ", padded[1],
              ", which is too large");
  Tensor y = DLK_OP(convolution).call(images, filters, bias, g.list());
  if (spatial == 1) y = y.squeeze(2);
  return batched ? y : y.squeeze(0);
}

Counter conv1d_calls("conv1d"), conv2d_calls("conv2d"), conv_transpose2d_calls("conv_transpose2d");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def("convolution(Tensor x, Tensor w, Tensor? bias, int[] geometry) -> Tensor");
  m.def("convolution_backward_input(Tensor dy, Tensor w, Tensor? bias, int[] x_size, int[] geometry) -> Tensor");
  m.def("convolution_backward_weight(Tensor x, Tensor dy, Tensor w, int[] geometry) -> Tensor");
}
DLK_IMPL(convolution, ConvolutionGradient)
DLK_IMPL(convolution_backward_input, TransposedConvolutionGradient)
DLK_IMPL_BACKWARD(convolution_backward_weight)

Tensor conv1d_entry(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t stride,
                    std::array<int64_t, 2> padding, int64_t dilation, int64_t groups) {
  const Geometry g({1, stride}, {0, 0, padding[0], padding[1]}, {1, dilation}, groups);
  if (!covered(conv1d_calls, {input, weight, or_undefined(bias)}, countable(1, input, weight, g)))
    return at::conv1d(pad_uneven(input, {0, padding[1] - padding[0]}), weight, bias, stride, padding[0], dilation,
                      groups);
  return convolve("conv1d", 1, input, weight, bias, g);
}

Tensor conv2d_entry(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    std::array<int64_t, 2> stride, std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation,
                    int64_t groups) {
  const Geometry g(stride, padding, dilation, groups);
  if (!covered(conv2d_calls, {input, weight, or_undefined(bias)}, countable(2, input, weight, g)))
    return reference(input, weight, bias, g);
  return convolve("conv2d", 2, input, weight, bias, g);
}

Tensor conv_transpose2d_entry(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                              std::array<int64_t, 2> stride, std::array<int64_t, 2> padding,
                              std::array<int64_t, 2> output_padding, int64_t groups, std::array<int64_t, 2> dilation) {
  const char* const op = "conv_transpose2d";
  const Geometry g(stride, {padding[0], padding[0], padding[1], padding[1]}, dilation, groups);
  if (!covered(conv_transpose2d_calls, {input, weight, or_undefined(bias)},
               countable(2, input, weight, g, /*transposed=*/true, output_padding)))
    return at::conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation);
  check_geometry(op, g);
  check_parameter(op, "output_padding", output_padding, 0);
  const auto xs = sizes_of(input), ws = sizes_of(weight);
  check_operands(op, 2, xs, ws, bias, g, /*transposed=*/true);
  const bool batched = xs.size() == 4;
  const Tensor x = batched ? input : input.unsqueeze(0);
  auto y_size = sizes_of(x);
  y_size[1] = ws[1] * groups;
  for (int axis = 0; axis < 2; ++axis) {
    TORCH_CHECK(output_padding[axis] < std::max(stride[axis], dilation[axis]),
                "output padding must be smaller than either stride or dilation, but got output_padding=",
                output_padding[axis], ", stride=", stride[axis], ", dilation=", dilation[axis]);
    TORCH_CHECK(y_size[2 + axis] > 0, op, ": input must have no empty spatial dimension, got shape ", xs);
    y_size[2 + axis] = (y_size[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (ws[2 + axis] - 1) +
                       output_padding[axis] + 1;
    TORCH_CHECK(y_size[2 + axis] > 0, op, ": padding=", padding[axis], " leaves no output: its size would be ",
                y_size[2 + axis]);
  }
  const Tensor y = DLK_OP(convolution_backward_input).call(x, weight, bias, y_size, g.list());
  return batched ? y : y.squeeze(0);
}

}  // namespace dlk::bindings
