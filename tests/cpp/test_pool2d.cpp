// Max and average pooling and their gradients against the definition, in both layouts, with windows and rows around the
// widths of vectors: what is read or written beyond a tensor is found here.
#include "csrc/core/pool2d.h"
#include "csrc/cpu/dispatch.h"
#include "tests/cpp/check.h"

using namespace dlk;

namespace {

/// f(output, input, position) for each tap inside the input, offsets in memory, in the order of the taps.
template <class F>
void for_each_tap(const Pool2d& p, F f) {
  const auto at = [&](int64_t n, int64_t c, int64_t h, int64_t w, int64_t H, int64_t W) {
    return p.channels_last ? ((n * H + h) * W + w) * p.C + c : ((n * p.C + c) * H + h) * W + w;
  };
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t c = 0; c < p.C; ++c)
      for (int64_t i = 0; i < p.OH; ++i)
        for (int64_t j = 0; j < p.OW; ++j)
          for (int64_t r = 0; r < p.R; ++r)
            for (int64_t s = 0; s < p.S; ++s) {
              const int64_t h = i * p.stride_h - p.pad_h + r * p.dilation_h;
              const int64_t w = j * p.stride_w - p.pad_w + s * p.dilation_w;
              if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
              f(at(n, c, i, j, p.OH, p.OW), at(n, c, h, w, p.H, p.W), r * p.S + s);
            }
}

template <class T>
void check_max(const std::string& name, const Pool2d& p, int64_t offset) {
  auto x = test::Buffer<T>::random(p.N * p.C * p.H * p.W, offset);
  auto dy = test::Buffer<T>::random(p.N * p.C * p.OH * p.OW, offset);
  test::Buffer<T> y(dy.size(), offset), y_alone(dy.size(), offset), dx(x.size(), offset);
  test::Buffer<uint8_t> positions(dy.size(), offset);
  test::HeapContext context;
  const auto& kernels = cpu::kernels<MaxPool2dKernels<T>>();
  kernels.forward(p, x.data(), y.data(), Positions{positions.data(), nullptr}, context);
  kernels.forward(p, x.data(), y_alone.data(), Positions{}, context);
  kernels.backward(p, dy.data(), Positions{positions.data(), nullptr}, dx.data(), context);

  std::vector<double> y_ref(y.size(), -INFINITY), positions_ref(y.size(), 255), dx_ref(x.size());
  std::vector<int64_t> source(y.size(), -1);
  for_each_tap(p, [&](int64_t out, int64_t in, int64_t position) {
    if (source[out] >= 0 && x[in] <= y_ref[out]) return;
    y_ref[out] = x[in], positions_ref[out] = position, source[out] = in;
  });
  for (size_t i = 0; i < source.size(); ++i)
    if (source[i] >= 0) dx_ref[source[i]] += dy[i];
  test::check_close(name + " max", y, y_ref, 0);
  test::check_close(name + " max without positions", y_alone, y_ref, 0);
  test::check_close(name + " positions", positions, positions_ref, 0);
  test::check_close(name + " max backward", dx, dx_ref, 32 * std::numeric_limits<T>::epsilon());
}

template <class T>
void check_average(const std::string& name, const Pool2d& sliding, int64_t offset) {
  AvgPool2d p{sliding};
  p.count_include_pad = false;
  auto x = test::Buffer<T>::random(p.N * p.C * p.H * p.W, offset);
  auto dy = test::Buffer<T>::random(p.N * p.C * p.OH * p.OW, offset);
  test::Buffer<T> y(dy.size(), offset), dx(x.size(), offset);
  test::HeapContext context;
  const auto& kernels = cpu::kernels<AvgPool2dKernels<T>>();
  kernels.forward(p, x.data(), y.data(), context);
  kernels.backward(p, dy.data(), dx.data(), context);

  std::vector<double> y_ref(y.size()), count(y.size()), dx_ref(x.size());
  for_each_tap(p, [&](int64_t out, int64_t in, int64_t) { y_ref[out] += x[in], ++count[out]; });
  for (size_t i = 0; i < y_ref.size(); ++i) y_ref[i] /= count[i];
  for_each_tap(p, [&](int64_t out, int64_t in, int64_t) { dx_ref[in] += dy[out] / count[out]; });
  const double tolerance = 32 * std::numeric_limits<T>::epsilon();
  test::check_close(name + " average", y, y_ref, tolerance);
  test::check_close(name + " average backward", dx, dx_ref, tolerance);
}

/// Outputs along an axis; with `ceil` also a last window that only begins inside.
int64_t outputs(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil) {
  const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1;
  if (room < 0) return 0;
  const int64_t out = (room + (ceil ? stride - 1 : 0)) / stride + 1;
  return (out - 1) * stride >= in + pad ? out - 1 : out;
}

template <class T>
void check_shapes(bool channels_last) {
  int64_t turn = 0;  // of what need not be tried with everything else
  for (const int64_t W : {1, 2, 4, 5, 7, 8, 9, 14, 15, 16, 17, 18, 31, 33, 35})
    for (const int64_t S : {1, 2, 3, 4})
      for (const int64_t stride : {1, 2, 3})
        for (const int64_t dilation : {1, 2})
          for (const int64_t pad : {int64_t{0}, S / 2}) {
            const bool ceil = ++turn % 2 == 0;
            const int64_t C = channels_last ? 1 + turn * 5 % 37 : 1 + turn % 3, R = 1 + turn % 3, H = 5 + turn % 4;
            const int64_t pad_h = pad < R / 2 ? pad : R / 2, offset = turn % 2;
            Pool2d p{.N = 2,
                     .C = C,
                     .H = H,
                     .W = W,
                     .OH = outputs(H, R, stride, pad_h, 1, ceil),
                     .OW = outputs(W, S, stride, pad, dilation, ceil),
                     .R = R,
                     .S = S,
                     .stride_h = stride,
                     .stride_w = stride,
                     .pad_h = pad_h,
                     .pad_w = pad,
                     .dilation_w = dilation,
                     .channels_last = channels_last};
            if (p.OH < 1 || p.OW < 1) continue;
            const std::string name = std::string(channels_last ? "nhwc" : "nchw") + " W " + std::to_string(W) + " S " +
                                     std::to_string(S) + " stride " + std::to_string(stride) + " dilation " +
                                     std::to_string(dilation) + " pad " + std::to_string(pad) + " C " +
                                     std::to_string(C);
            check_max<T>(name, p, offset);
            if (dilation == 1) check_average<T>(name, p, offset);
          }
}

}  // namespace

int main() {
  return test::run([] {
    for (const bool channels_last : {false, true}) {
      check_shapes<float>(channels_last);
      check_shapes<double>(channels_last);
    }
  });
}
