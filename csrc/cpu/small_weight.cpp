// Convolution gradient to few weights, or of few outputs: dw[k, c, t] = sum over pixels p of dy[k, p] patch(c, t, p).
//
// Lanes are adjacent pixels of a row: a tile of outputs x terms keeps a vector of sums each in registers and runs over
// the rows of a band, so nothing but the padded input rows is packed (NHWC: transposed, and dy too). The rows of all
// images are cut into a fixed number of splits; each adds the sums of its bands, then its lanes, and the splits are
// added in order: the result does not depend on the threads.
#include "csrc/cpu/small_weight.h"

#include "csrc/cpu/patches.h"

namespace dlk::cpu::DLK_ISA {
namespace {

/// Splits: enough to balance a few threads.
constexpr int64_t kSplits = 8;
/// Elements of the rows of a band, of input and output: they stay in L1.
constexpr int64_t kBandElements = 6 << 10;
/// Outputs and terms of a tile: their sums, a vector of each output and one of a term fill the registers (with AVX-512
/// three quarters of them, since more would load no less per product).
constexpr int kOutputs = kIsa == Isa::avx512 ? 4 : 3, kTerms = kIsa == Isa::avx512 ? 5 : 3;

/// The rows of a band.
template <class T>
struct Band {
  int64_t rows, cols;
  const T** x;          // what the first term reads for the first pixel of each row
  const T** dy;         // the first pixel of each row in output 0
  int64_t dy_plane;     // from output to output
  const int64_t* term;  // of each term, from what the first term reads
};

/// Adds a band's sums for `outputs` outputs from k on and `terms` terms from `first` on to the vectors at `sums`.
template <class T, int outputs, int terms>
void add_tile(const Band<T>& band, int64_t k, int64_t first, T* sums, int64_t sums_stride) {
  Vec<T> sum[outputs][terms] = {};
  int64_t offset[terms];
  for (int t = 0; t < terms; ++t) offset[t] = band.term[first + t];
  for (int64_t r = 0; r < band.rows; ++r) {
    const T *x = band.x[r], *dy = band.dy[r] + k * band.dy_plane;
    for_each_vec<T>(band.cols, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
      Vec<T> d[outputs];
#pragma GCC unroll 4
      for (int o = 0; o < outputs; ++o) {  // and fetch the next band's (which of NHWC are not there yet)
        fetch_ahead<Fetch::into_l2>(dy + o * band.dy_plane + band.rows * band.cols + j);
        d[o] = load_n(dy + o * band.dy_plane + j, lanes);
      }
#pragma GCC unroll 5
      for (int t = 0; t < terms; ++t) {
        const Vec<T> v = load_n(x + offset[t] + j, lanes);
#pragma GCC unroll 4
        for (int o = 0; o < outputs; ++o) add_product<T>(sum[o][t], v, d[o]);
      }
    });
  }
#pragma GCC unroll 4
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 5
    for (int t = 0; t < terms; ++t) {
      T* const to = sums + o * sums_stride + t * kLanes<T>;
      store(to, load(to) + sum[o][t]);
    }
  }
}

/// add_tile<> for 1 .. kOutputs outputs and 1 .. kTerms terms.
template <class T>
using TileFunction = void (*)(const Band<T>&, int64_t, int64_t, T*, int64_t);
template <class T, class = std::make_integer_sequence<int, kOutputs * kTerms>>
struct Tiles;
template <class T, int... i>
struct Tiles<T, std::integer_sequence<int, i...>> {
  static constexpr TileFunction<T> of[] = {add_tile<T, i / kTerms + 1, i % kTerms + 1>...};
};

/// Adds a band's sums for all outputs and terms: `sums` is [output][term][lane].
template <class T>
void add_band(const Band<T>& band, int64_t CO, int64_t terms, T* sums) {
  const int64_t most_outputs = even_part(CO, kOutputs), stride = terms * kLanes<T>;
  const int64_t most_terms = even_part(terms, kTerms);
  for (int64_t k = 0; k < CO; k += most_outputs)
    for (int64_t t = 0; t < terms; t += most_terms) {
      const int64_t outputs = CO - k < most_outputs ? CO - k : most_outputs;
      const int64_t some = terms - t < most_terms ? terms - t : most_terms;
      Tiles<T>::of[(outputs - 1) * kTerms + some - 1](band, k, t, sums + k * stride + t * kLanes<T>, stride);
    }
}

/// Grid rows, counted through all images, of a band.
int64_t band_rows(const Correlation& q) {
  const int64_t row_elements = q.CI * q.step_h * (q.cols * q.step_w + Span(q).width) + q.CO * q.cols;
  return kBandElements / row_elements > 1 ? kBandElements / row_elements : 1;
}

}  // namespace

template <class T>
void small_weight(const Correlation& q, const T* in, const T* dy, T* dw, Context& context) {
  constexpr int64_t L = kLanes<T>;
  const int64_t rows = q.N * q.rows, terms = q.CI * q.taps, K = q.groups * q.CO, size = q.CO * terms;
  const int64_t splits = rows < kSplits ? rows : kSplits, band = band_rows(q), threads = max_threads();
  const int64_t stage_size = PlanarPatches<T>::stage_elements(q, band * q.cols, q.CI, /*always=*/true);
  const int64_t dy_size = q.channels_last ? q.CO * band * q.cols : 0;
  T* stages = context.array<T>(threads * stage_size);
  T* dy_stages = context.array<T>(threads * dy_size);
  T* all_sums = context.array<T>(threads * size * L);
  T* partial = context.array<T>(q.groups * splits * size);
  Run* runs = context.array<Run>(threads * (band + 1));
  const T** pointers = context.array<const T*>(threads * 2 * band);
  int64_t* all_offsets = context.array<int64_t>(threads * terms);

  run_team(worth_threads(q), [&](const Team& team) {
    const T **x_rows = pointers + team.rank * 2 * band, **dy_rows = x_rows + band;
    int64_t* const offsets = all_offsets + team.rank * terms;
    T *const sums = all_sums + team.rank * size * L, *const dy_stage = dy_stages + team.rank * dy_size;
    team.for_each(q.groups * splits, [&](int64_t task) {
      const int64_t g = task / splits, split = task % splits;
      const Range share{rows * split / splits, rows * (split + 1) / splits};
      zero(size * L, sums);
      for (int64_t begin = share.begin; begin < share.end; begin += band) {
        const int64_t count = share.end - begin < band ? share.end - begin : band;
        PlanarPatches<T> patches(q, {begin * q.cols, (begin + count) * q.cols}, q.cols, runs + team.rank * (band + 1),
                                 stages + team.rank * stage_size, /*always=*/true);
        patches.stage(in, g, {0, q.CI});
        for (int64_t i = 0; i < terms; ++i) offsets[i] = patches.source(i / q.taps, i % q.taps) - patches.source(0, 0);
        for (int64_t r = 0; r < count; ++r) {
          x_rows[r] = patches.source(0, 0) + patches.run(r).from;
          const int64_t n = (begin + r) / q.rows, i = (begin + r) % q.rows;
          if (q.channels_last)
            dy_rows[r] = dy_stage + r * q.cols;
          else
            dy_rows[r] = dy + ((n * K + g * q.CO) * q.rows + i) * q.cols;
        }
        if (q.channels_last)
          store_transposed(dy + begin * q.cols * K + g * q.CO, K, count * q.cols, q.CO, dy_stage, band * q.cols);
        const int64_t dy_plane = q.channels_last ? band * q.cols : q.rows * q.cols;
        add_band({count, q.cols, x_rows, dy_rows, dy_plane, offsets}, q.CO, terms, sums);
      }
      for (int64_t i = 0; i < size; ++i) partial[task * size + i] = reduce_sum(load(sums + i * L));
    });
    team.for_each(q.groups, [&](int64_t g) {
      for (int64_t i = 0; i < size; ++i) {
        T sum = 0;
        for (int64_t split = 0; split < splits; ++split) sum += partial[(g * splits + split) * size + i];
        const int64_t k = i / terms, c = i % terms / q.taps, t = i % q.taps;
        dw[g * q.w_group + k * q.w_out + c * q.w_in + q.weight[t]] = sum;
      }
    });
  });
}

template void small_weight(const Correlation&, const float*, const float*, float*, Context&);
template void small_weight(const Correlation&, const double*, const double*, double*, Context&);

}  // namespace dlk::cpu::DLK_ISA
