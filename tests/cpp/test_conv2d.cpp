// Convolution, its gradients to input and weight, against the definition in float64, in both layouts, misaligned.
#include "csrc/core/conv2d.h"
#include "csrc/cpu/dispatch.h"
#include "tests/cpp/check.h"

using namespace dlk;

namespace {

struct Strides {
  int64_t n, c, h, w;
  Strides(bool channels_last, int64_t C, int64_t H, int64_t W)
      : n(C * H * W), c(channels_last ? 1 : H * W), h(channels_last ? W * C : W), w(channels_last ? C : 1) {}
};

/// f(offset in x, offset in w, offset in y, k, c index within x) for each product of the convolution.
template <class F>
void for_each_product(const Conv2d& p, F f) {
  const Strides x(p.channels_last, p.C, p.H, p.W), y(p.channels_last, p.K, p.OH, p.OW);
  const int64_t Cg = p.C / p.groups, Kg = p.K / p.groups;
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t k = 0; k < p.K; ++k)
      for (int64_t i = 0; i < p.OH; ++i)
        for (int64_t j = 0; j < p.OW; ++j)
          for (int64_t c = 0; c < Cg; ++c)
            for (int64_t r = 0; r < p.R; ++r)
              for (int64_t s = 0; s < p.S; ++s) {
                const int64_t h = i * p.stride_h + r * p.dilation_h - p.pad_h;
                const int64_t w = j * p.stride_w + s * p.dilation_w - p.pad_w;
                if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
                f(n * x.n + (k / Kg * Cg + c) * x.c + h * x.h + w * x.w, k * p.w_k + c * p.w_c + r * p.w_r + s * p.w_s,
                  n * y.n + k * y.c + i * y.h + j * y.w);
              }
}

template <class T>
void check_passes(const std::string& name, Conv2d p, int64_t offset, bool weights_last = false) {
  p.w_s = weights_last ? p.C / p.groups : 1, p.w_r = p.S * p.w_s, p.w_c = weights_last ? 1 : p.R * p.S;
  p.w_k = p.C / p.groups * p.R * p.S;
  p.OH = (p.H + 2 * p.pad_h - p.dilation_h * (p.R - 1) - 1) / p.stride_h + 1;
  p.OW = (p.W + 2 * p.pad_w - p.dilation_w * (p.S - 1) - 1) / p.stride_w + 1;
  const std::string what = name + (p.channels_last ? " nhwc" : " nchw");
  auto x = test::Buffer<T>::random(p.N * p.C * p.H * p.W, offset);
  auto w = test::Buffer<T>::random(p.K * p.w_k, offset);
  auto dy = test::Buffer<T>::random(p.N * p.K * p.OH * p.OW, offset);
  test::Buffer<T> y(dy.size(), offset), dx(x.size(), offset), dw(w.size(), offset);
  test::HeapContext context;
  const auto& kernels = cpu::kernels<Conv2dKernels<T>>();
  kernels.forward(p, x.data(), w.data(), nullptr, y.data(), context);
  kernels.backward_input(p, dy.data(), w.data(), nullptr, dx.data(), context);
  cpu::kernels<Conv2dWeightKernels<T>>().backward_weight(p, x.data(), dy.data(), dw.data(), context);

  std::vector<double> y_ref(y.size()), dx_ref(dx.size()), dw_ref(dw.size());
  for_each_product(p, [&](int64_t xi, int64_t wi, int64_t yi) {
    y_ref[yi] += double(x[xi]) * w[wi];
    dx_ref[xi] += double(dy[yi]) * w[wi];
    dw_ref[wi] += double(dy[yi]) * x[xi];
  });
  const double unit = 8 * std::numeric_limits<T>::epsilon();
  test::check_close(what + " forward", y, y_ref, unit * (p.C / p.groups * p.R * p.S + 4));
  test::check_close(what + " backward input", dx, dx_ref, unit * (p.K / p.groups * p.R * p.S + 4));
  test::check_close(what + " backward weight", dw, dw_ref, unit * (p.N * p.OH * p.OW + 4));
}

template <class T>
void check_shapes() {
  for (const bool channels_last : {false, true}) {
    const auto conv = [&](int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t R, int64_t S, int64_t stride,
                          int64_t pad, int64_t dilation, int64_t groups) {
      return Conv2d{.N = N,
                    .C = C,
                    .H = H,
                    .W = W,
                    .K = K,
                    .R = R,
                    .S = S,
                    .OH = 0,
                    .OW = 0,
                    .stride_h = stride,
                    .stride_w = stride,
                    .pad_h = pad,
                    .pad_w = pad,
                    .dilation_h = dilation,
                    .dilation_w = dilation,
                    .groups = groups,
                    .channels_last = channels_last,
                    .w_k = 0,
                    .w_c = 0,
                    .w_r = 0,
                    .w_s = 0};
    };
    // Widths 1 to past three vectors of 16 floats.
    for (int64_t W = 1; W <= 50; ++W) check_passes<T>("width", conv(1, 3, 4, W, 5, 3, 3, 1, 1, 1, 1), W % 4);
    for (int64_t K = 1; K <= 35; K += 2) check_passes<T>("channels", conv(2, K, 5, 6, 36 - K, 3, 2, 1, 0, 1, 1), 1);
    check_passes<T>("strided", conv(2, 4, 13, 17, 6, 3, 3, 2, 1, 1, 1), 1);
    check_passes<T>("strides past kernel", conv(2, 4, 13, 17, 6, 2, 2, 3, 0, 1, 1), 0);
    check_passes<T>("dilated", conv(1, 4, 13, 17, 6, 3, 2, 1, 2, 3, 1), 2);
    check_passes<T>("groups", conv(2, 6, 9, 11, 9, 3, 3, 1, 1, 1, 3), 1);
    check_passes<T>("depthwise", conv(2, 21, 9, 19, 21, 3, 3, 1, 1, 1, 21), 3);
    check_passes<T>("depthwise strided", conv(2, 70, 9, 19, 70, 3, 3, 2, 1, 1, 70), 1);
    check_passes<T>("depthwise in bands", conv(1, 3, 41, 130, 3, 3, 3, 2, 2, 1, 3), 1);
    check_passes<T>("depthwise 2x2", conv(2, 3, 70, 33, 3, 2, 2, 1, 0, 1, 3), 1);
    check_passes<T>("depthwise 2x2 strided", conv(2, 3, 37, 66, 3, 2, 2, 2, 1, 1, 3), 1);
    for (int64_t n = 1; n <= 8; ++n)
      check_passes<T>("narrow groups", conv(2, 7 * n, 6, 7 + n, 7 * (9 - n), 3, 3, 1 + n % 2, 1, 1, 7), 1);
    check_passes<T>("1x1", conv(3, 17, 7, 9, 33, 1, 1, 1, 0, 1, 1), 1);
    check_passes<T>("several pixel blocks", conv(2, 3, 20, 30, 40, 3, 3, 1, 1, 1, 1), 1);
    check_passes<T>("winograd", conv(3, 20, 17, 14, 21, 3, 3, 1, 1, 1, 1), 1);
    check_passes<T>("winograd, few tiles", conv(1, 18, 9, 7, 140, 3, 3, 1, 2, 1, 1), 1);
    check_passes<T>("few pixels", conv(1, 5, 4, 5, 90, 3, 3, 1, 1, 1, 1), 1, channels_last);
    check_passes<T>("few pixels, strided", conv(2, 5, 6, 5, 33, 3, 2, 2, 1, 1, 1), 1, channels_last);
    check_passes<T>("few outputs", conv(2, 19, 8, 9, 1, 3, 3, 1, 1, 1, 1), 1, channels_last);
    check_passes<T>("few outputs, strided", conv(2, 40, 9, 11, 2, 5, 5, 2, 2, 1, 1), 1, channels_last);
    check_passes<T>("several sum blocks", conv(1, 140, 5, 6, 3, 3, 3, 1, 1, 1, 1), 1);
  }
}

}  // namespace

int main() {
  return test::run([] {
    check_shapes<float>();
    check_shapes<double>();
  });
}
