// matmul and linear, on one batched matrix product, `dlkernels::gemm`; its gradients are products again, with the
// operands' strides swapped instead of copies.
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>

#include <algorithm>

#include "csrc/bindings/channel_sum.h"
#include "csrc/bindings/common.h"
#include "csrc/bindings/ops.h"
#include "csrc/core/gemm.h"

namespace dlk::bindings {
namespace {

/// `x` (..., rows, columns) itself if the kernels can read it: one of the last two strides is 1, no stride overlaps.
Tensor readable(const Tensor& x) {
  const auto unit = [&](int64_t dim, int64_t other) {
    return x.stride(dim) == 1 && (x.stride(other) >= x.size(dim) || x.size(other) == 1);
  };
  return unit(-1, -2) || unit(-2, -1) ? x : x.contiguous();
}

/// x (..., columns) as (rows, columns).
Tensor as_rows(const Tensor& x) {
  if (x.dim() == 2) return x;
  return x.dim() == 1 ? x.unsqueeze(0) : x.flatten(0, -2);
}

/// c = a b + bias with b transposed if so said: matrices, or batches of them in a leading dimension of each.
void multiply(const Tensor& a, const Tensor& b, bool transpose_b, const Tensor& bias, const Tensor& c) {
  if (c.numel() == 0) return;
  const Tensor left = readable(a), right = readable(b), row = bias.defined() ? bias.contiguous() : bias;
  const int64_t N = b.size(transpose_b ? -2 : -1);
  Gemm p{.M = a.size(-2),
         .N = N,
         .K = a.size(-1),
         .a_row = left.stride(-2),
         .a_col = left.stride(-1),
         .b_row = right.stride(transpose_b ? -1 : -2),
         .b_col = right.stride(transpose_b ? -2 : -1),
         .c_row = N,
         .allow_tf32 = allow_tf32(c, /*convolution=*/false)};
  if (a.dim() == 3) {
    p.batch = a.size(0);
    p.a_batch = left.stride(0);
    p.b_batch = right.stride(0);
    p.c_batch = p.M * N;
  }
  with_kernels<GemmKernels>(c, [&]<class T>(const GemmKernels<T>& kernels, Context& context) {
    kernels.multiply(p, const_data<T>(left), const_data<T>(right), const_data<T>(row), mutable_data<T>(c), context);
  });
}

// gemm(Tensor a, Tensor b) -> Tensor: (M, K) x (K, N), or (B, M, K) x (B, K, N)
Tensor gemm(const Tensor& a, const Tensor& b) {
  const auto sa = sizes_of(a), sb = sizes_of(b);
  const size_t rank = sa.size();
  const bool matrices = rank == 2 && sb.size() == 2, batches = rank == 3 && sb.size() == 3 && sa[0] == sb[0];
  TORCH_CHECK((matrices || batches) && sa[rank - 1] == sb[rank - 2],
              "gemm: a and b must be (M, K) and (K, N), or (B, M, K) and (B, K, N), got ", sa, " and ", sb);
  at::DimVector sizes = sa;
  sizes.back() = sb.back();
  const Tensor c = allocate(sizes, a.options());
  if (!c.is_meta()) multiply(a, b, /*transpose_b=*/false, Tensor(), c);
  return c;
}

// linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor: (..., K), (N, K), (N) to (..., N)
Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const auto sx = sizes_of(x), sw = sizes_of(weight);
  TORCH_CHECK(sw.size() == 2, "linear: weight must be 2-D (out_features, in_features), got shape ", sw);
  TORCH_CHECK(!sx.empty() && sx.back() == sw[1], "linear: the last dimension of input must be in_features = ", sw[1],
              ", got input of shape ", sx);
  if (bias.has_value()) {
    const auto sb = sizes_of(*bias);
    TORCH_CHECK(sb.size() == 1 && sb[0] == sw[0], "linear: bias must have shape (out_features,) = (", sw[0], "), got ",
                sb);
  }
  auto out = sx;
  out.back() = sw[0];
  const Tensor y = allocate(out, x.options());
  if (y.is_meta() || y.numel() == 0) return y;
  multiply(as_rows(x), weight, /*transpose_b=*/true, or_undefined(bias), y);
  return y;
}

struct GemmGradient {
  static Tensor forward(Recording* call, const Tensor& a, const Tensor& b) {
    call->save_for_backward({b.requires_grad() ? a : Tensor(), a.requires_grad() ? b : Tensor()});
    return DLK_OP(gemm).call(a, b);
  }

  // Under create_graph the products below are recorded like any other.
  static variable_list backward(Recording* call, const Tensor& dc) {
    const auto saved = call->saved_tensors();
    const Tensor &a = saved[0], &b = saved[1];
    Tensor da, db;
    if (call->needs_gradient(0)) da = DLK_OP(gemm).call(dc, b.transpose(-2, -1));
    if (call->needs_gradient(1)) db = DLK_OP(gemm).call(a.transpose(-2, -1), dc);
    return {da, db};
  }
};

struct LinearGradient {
  static Tensor forward(Recording* call, const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
    call->save_for_backward({weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    call->save_values(bias.has_value());
    return DLK_OP(linear).call(x, weight, bias);
  }

  static variable_list backward(Recording* call, const Tensor& dy) {
    const auto saved = call->saved_tensors();
    const Tensor &x = saved[0], &weight = saved[1];
    const auto [has_bias] = call->saved_values<bool>();
    const Tensor rows = as_rows(dy);
    Tensor dx, dweight, dbias;
    if (call->needs_gradient(0)) {
      dx = DLK_OP(gemm).call(rows, weight);
      if (dy.dim() != 2) {
        std::vector<c10::SymInt> sizes = dy.sym_sizes().vec();
        sizes.back() = weight.sym_size(1);
        dx = dx.view_symint(sizes);
      }
    }
    if (call->needs_gradient(1)) dweight = DLK_OP(gemm).call(rows.t(), as_rows(x));
    if (has_bias && call->needs_gradient(2)) dbias = create_graph() ? rows.sum(0) : channel_sum_op(rows.unsqueeze(2));
    return {dx, dweight, dbias};
  }
};

/// x (..., rows, columns) as (batch, rows, columns), broadcast to `shape` in the leading dimensions without a copy
/// where one matrix serves the whole batch.
Tensor as_batch(const Tensor& x, at::IntArrayRef shape, int64_t batch) {
  const int64_t rows = x.size(-2), columns = x.size(-1);
  if (rows * columns > 0 && x.numel() == rows * columns)
    return x.reshape({1, rows, columns}).expand({batch, rows, columns});
  std::vector<int64_t> full(shape.begin(), shape.end());
  full.push_back(rows);
  full.push_back(columns);
  return x.expand(full).reshape({batch, rows, columns});
}

/// Whether the kernels can number what the product of a and b has: its rows, columns, terms and batch elements. What
/// the shapes must not be is not asked here.
bool countable(const Tensor& a, const Tensor& b) {
  if (!counts_in_32_bits(a) || a.is_nested() || b.is_nested()) return true;  // nested: not covered
  const auto sa = sizes_of(a), sb = sizes_of(b);
  double rows = 1, batch = 1;
  for (size_t i = 0; i + 1 < sa.size(); ++i) rows *= sa[i];
  for (size_t i = 3; i <= std::max(sa.size(), sb.size()); ++i)  // from the end
    batch *= std::max(i <= sa.size() ? sa[sa.size() - i] : 1, i <= sb.size() ? sb[sb.size() - i] : 1);
  const auto rows_b = static_cast<double>(sb.size() > 1 ? sb[sb.size() - 2] : 1);
  return fit_32_bits({rows, batch, static_cast<double>(sa.back()), rows_b, static_cast<double>(sb.back())});
}

Counter linear_calls("linear"), matmul_calls("matmul");

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlkernels, m) {
  m.def("gemm(Tensor a, Tensor b) -> Tensor");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}
DLK_IMPL(gemm, GemmGradient)
DLK_IMPL(linear, LinearGradient)

Tensor linear_entry(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  const bool plain_bias = !bias || (bias->dim() == 1 && (bias->sym_size(0) != 1 || weight.sym_size(0) == 1));
  const bool supported = input.dim() > 0 && weight.dim() == 2 && plain_bias && countable(input, weight);
  if (!covered(linear_calls, {input, weight, or_undefined(bias)}, supported)) return at::linear(input, weight, bias);
  return DLK_OP(linear).call(input, weight, bias);
}

Tensor matmul_entry(const Tensor& input, const Tensor& other) {
  const bool supported = input.dim() > 0 && other.dim() > 0 && countable(input, other);
  if (!covered(matmul_calls, {input, other}, supported)) return at::matmul(input, other);
  const Tensor a = input.dim() == 1 ? input.unsqueeze(0) : input, b = other.dim() == 1 ? other.unsqueeze(1) : other;
  const auto sa = sizes_of(a), sb = sizes_of(b);
  const int64_t M = sa[sa.size() - 2], K = sa.back(), N = sb.back();
  TORCH_CHECK(K == sb[sb.size() - 2], "matmul: the inner dimensions of input and other must agree, got shapes ",
              input.sizes(), " and ", other.sizes());

  if (input.dim() == 2 && other.dim() == 2) return DLK_OP(gemm).call(input, other);
  // The shape of the result: broadcast batch dimensions, then M and N where the operand was not a vector.
  std::vector<int64_t> shape =
      at::infer_size(at::IntArrayRef(sa).slice(0, sa.size() - 2), at::IntArrayRef(sb).slice(0, sb.size() - 2));
  const int64_t batch = c10::multiply_integers(shape);
  Tensor c;
  if (sb.size() == 2)  // one right operand: the whole batch is one tall product
    c = DLK_OP(gemm).call(as_rows(a), b);
  else
    c = DLK_OP(gemm).call(as_batch(a, shape, batch), as_batch(b, shape, batch));
  if (input.dim() > 1) shape.push_back(M);
  if (other.dim() > 1) shape.push_back(N);
  return c.reshape(shape);
}

}  // namespace dlk::bindings
