// Convolution forward and gradient to the input, as correlations (correlation.h): by Winograd's algorithm
// (winograd.cpp) or directly (depthwise_*.cpp, narrow_groups.cpp; correlate_few below) where those are faster, else by
// implicit GEMM; the gradient to the input from few pixels by col2im (col2im.h). A filter as large as the image is one
// of 1 x 1 over a pixel of all its elements (of_one_pixel).
//
// Pixels as rows: per group, out[pixels x CO] = Patches[pixels x (t, c)] W^T, for NHWC and for NCHW's larger sums,
// whose rows are transposed on the way in and sums at the end. Pixels as columns: out[CO x pixels] = W Patches,
// for the rest of NCHW. Of 1 x 1 filters over NHWC or all but small images that is a product in memory (gemm.h). The
// weights are packed once, unless they lie well; then tasks (group, block of pixels, part of CO) run on the team of
// threads: each makes patches readable (patches.h), one block of the sum at a time, and multiplies. An element of out
// is summed by one thread, in an order that depends on the shape alone.
#include "csrc/core/conv2d.h"

#include "csrc/core/gemm.h"
#include "csrc/cpu/col2im.h"
#include "csrc/cpu/depthwise_planes.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/joint_phases.h"
#include "csrc/cpu/narrow_groups.h"
#include "csrc/cpu/patches.h"
#include "csrc/cpu/sampled_pixels.h"
#include "csrc/cpu/winograd.h"

namespace dlk::cpu {
namespace {

using namespace DLK_ISA;

/// Whether threads share the outputs rather than the pixels, because there is more of weights than of the input: a line
/// that another core has just packed takes longer to fetch than to pack, and so each packs the weights of its outputs.
inline bool shares_outputs(const Correlation& q) { return q.CO * q.taps > q.N * q.IH * q.IW; }

/// Tasks: groups x parts of CO x pixel blocks.
struct Tiling {
  int64_t pixels, pixel_blocks;  // per block; count
  int64_t outputs, output_parts;

  Tiling(const Correlation& q, int64_t most_pixels, int64_t pixel_multiple, int64_t output_multiple) {
    pixel_blocks = ceil_div(q.pixels(), most_pixels);
    pixels = round_up(ceil_div(q.pixels(), pixel_blocks), pixel_multiple);
    pixel_blocks = ceil_div(q.pixels(), pixels);
    constexpr int64_t kEnough = 4;  // tasks per thread; with fewer, CO is cut too
    const int64_t threads = max_threads(), most = ceil_div(q.CO, 4 * output_multiple);
    const bool cut = shares_outputs(q) || q.groups * pixel_blocks < kEnough * threads;
    output_parts = !cut ? 1 : threads < most ? threads : most;
    outputs = round_up(ceil_div(q.CO, output_parts), output_multiple);
    output_parts = ceil_div(q.CO, outputs);
  }

  int64_t count(const Correlation& q) const { return q.groups * pixel_blocks * output_parts; }

  Range pixel_range(const Correlation& q, int64_t block) const { return block_range(block, pixels, q.pixels()); }

  struct Task {
    int64_t group;
    Range pixels, outputs;
  };
  Task task(const Correlation& q, int64_t i) const {
    return {i / pixel_blocks / output_parts, pixel_range(q, i % pixel_blocks),
            block_range(i / pixel_blocks % output_parts, outputs, q.CO)};
  }
};

/// Terms of a partial sum of NCHW and of few outputs: oneDNN's AVX-512 kernels sum those in shorter runs than others.
template <class T>
constexpr int64_t kRun = kIsa == Isa::avx512 ? 64 : Block<T>::kSum;

template <class T>
const T* weight_at(const Correlation& q, const T* w, int64_t g, int64_t m, int64_t c, int64_t t) {
  return w + g * q.w_group + m * q.w_out + c * q.w_in + q.weight[t];
}

/// Output offsets of a block of pixels, the images `image_stride` and the pixels of one `pixel_stride` apart.
void output_offsets(const Correlation& q, Range pixels, int64_t image_stride, int64_t pixel_stride, int64_t* offsets) {
  Pixel pixel(q, pixels.begin);
  for (int64_t p = pixels.begin; p < pixels.end; ++p, pixel.next(q))
    *offsets++ = pixel.n * image_stride + q.output_pixel(pixel.i, pixel.j) * pixel_stride;
}

// ---- Pixels as columns: NCHW

/// Whether the weights of an output are contiguous in the order of the sum, (c, t): (CO, CI, R, S) in memory.
inline bool weights_in_order(const Correlation& q) { return q.w_in == q.taps && taps_in_order(q, 1); }

/// Row m of the packed weights of one block of the sum: terms (c, t), taps innermost.
template <class T>
void pack_weight_row(const Correlation& q, const T* w, int64_t g, int64_t m, Range channels, Range taps, T* row) {
  const T* from = weight_at(q, w, g, m, channels.begin, taps.begin);
  if (taps.size() == q.taps && weights_in_order(q)) return copy(from, channels.size() * q.taps, row);
  for (int64_t c = channels.begin; c < channels.end; ++c)
    for (int64_t t = taps.begin; t < taps.end; ++t) *row++ = *weight_at(q, w, g, m, c, t);
}

/// The rows of `outputs`, `stride` apart.
template <class T>
void pack_weight_rows(const Correlation& q, const T* w, int64_t g, Range outputs, Range channels, Range taps, T* rows,
                      int64_t stride) {
  if (q.taps == 1 && q.w_out == 1)
    return store_transposed(weight_at(q, w, g, outputs.begin, channels.begin, 0), q.w_in, channels.size(),
                            outputs.size(), rows, stride);
  for (int64_t m = outputs.begin; m < outputs.end; ++m, rows += stride)
    pack_weight_row(q, w, g, m, channels, taps, rows);
}

/// The weights of all groups, [group][block of the sum][m][terms], or where they lie in that order anyway.
template <class T>
class PlanarWeights {
 public:
  PlanarWeights(const Correlation& q, const SumBlocks<T>& sums, const T* w, Context& context)
      : q_(q), sums_(sums), w_(w), stride_(packed_row_stride<T>(sums.terms())) {
    // The MR rows that a tile reads must not share cache sets: a multiple of half a page between them leaves two of 64.
    // But for few pixels packing takes longer than that.
    const bool spread = q.w_out * sizeof(T) % 2048 != 0, few = q.pixels() <= 4 * Block<T>::NR;
    in_place_ = weights_in_order(q) && sums.tap_blocks == 1 && (spread || few);
    if (!in_place_) data_ = context.array<T>(q.groups * sums.count() * q.CO * stride_);
  }

  void pack(const Team& team) const {
    if (in_place_) return;
    constexpr int64_t L = kLanes<T>;
    const int64_t parts = ceil_div(q_.CO, L);
    team.for_each(q_.groups * parts, [&](int64_t i) {
      const int64_t g = i / parts;
      const Range outputs = block_range(i % parts, L, q_.CO);
      for (int64_t block = 0; block < sums_.count(); ++block)
        pack_weight_rows(q_, w_, g, outputs, sums_.channel_range(block), sums_.tap_range(block),
                         data_ + ((g * sums_.count() + block) * q_.CO + outputs.begin) * stride_, stride_);
    });
  }
  AView<T> view(int64_t g, int64_t block) const {
    if (in_place_) return {weight_at(q_, w_, g, 0, sums_.channel_range(block).begin, 0), q_.w_out, true};
    return {data_ + (g * sums_.count() + block) * q_.CO * stride_, stride_, true};
  }

 private:
  const Correlation& q_;
  const SumBlocks<T>& sums_;
  const T* w_;
  int64_t stride_;
  bool in_place_;
  T* data_ = nullptr;
};

template <class T>
void correlate_planar(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  using B = Block<T>;
  const SumBlocks<T> sums(q);
  const Tiling tiling(q, kBlockPixels, B::NR, B::MR);
  const PlanarWeights<T> weights(q, sums, w, context);
  // A panel of patches is packed just before its products, which find it in L1. Patches that several tasks need are
  // packed first, all of them.
  const bool shared = tiling.output_parts > 1 && !shares_outputs(q);
  const int64_t stage_size = PlanarPatches<T>::stage_elements(q, tiling.pixels, sums.channels);
  const int64_t panel_size = sums.terms() * B::NR + kLanes<T>, panels_per_block = ceil_div(tiling.pixels, B::NR);
  const int64_t near = panels_at_once<T>(sums.terms());
  const int64_t blocks = q.groups * tiling.pixel_blocks * sums.count(), threads = max_threads();
  const int64_t runs_size = 2 * tiling.pixels + 1;
  T* stages = context.array<T>(threads * stage_size);
  T* panels = context.array<T>((shared ? blocks * panels_per_block : threads * near) * panel_size);
  Run* runs = context.array<Run>(threads * runs_size);
  int64_t* all_columns = context.array<int64_t>(threads * tiling.pixels);

  run_team(worth_threads(q), [&](const Team& team) {
    weights.pack(team);
    const auto patches_of = [&](Range pixels) {
      return PlanarPatches<T>(q, pixels, B::NR, runs + team.rank * runs_size, stages + team.rank * stage_size);
    };
    // Blocks of taps of the same channels follow each other and share what is staged.
    const auto stage = [&](PlanarPatches<T>& patches, int64_t g, int64_t block) {
      if (sums.tap_range(block).begin == 0) patches.stage(in, g, sums.channel_range(block));
    };
    const auto pack = [&](const PlanarPatches<T>& patches, Range pixels, int64_t block, int64_t first, T* panel) {
      const Range channels = sums.channel_range(block), taps = sums.tap_range(block);
      if (pixels.size() - first < B::NR) zero(channels.size() * taps.size() * B::NR, panel);
      patches.template read_panel<B::NR>(first, channels.size(), taps, panel);
    };
    if (shared)
      team.for_each(blocks / sums.tap_blocks, [&](int64_t i) {
        const int64_t first_block = i * sums.tap_blocks;
        const int64_t g = first_block / sums.count() / tiling.pixel_blocks;
        const Range pixels = tiling.pixel_range(q, first_block / sums.count() % tiling.pixel_blocks);
        PlanarPatches<T> patches = patches_of(pixels);
        for (int64_t block = first_block; block < first_block + sums.tap_blocks; ++block) {
          T* panel = panels + block * panels_per_block * panel_size;
          stage(patches, g, block % sums.count());
          for (int64_t p = 0; p < pixels.size(); p += B::NR, panel += panel_size)
            pack(patches, pixels, block % sums.count(), p, panel);
        }
      });
    int64_t* columns = all_columns + team.rank * tiling.pixels;
    team.for_each(tiling.count(q), [&](int64_t i) {
      const auto [g, pixels, outputs] = tiling.task(q, i);
      PlanarPatches<T> patches = patches_of(pixels);
      output_offsets(q, pixels, q.groups * q.CO * q.OH * q.OW, 1, columns);
      for (int64_t block = 0; block < sums.count(); ++block) {
        const int64_t terms = sums.channel_range(block).size() * sums.tap_range(block).size();
        CView<T> c{.data = out + g * q.CO * q.OH * q.OW,
                   .row_stride = q.OH * q.OW,
                   .columns = columns,
                   .accumulate = block > 0};
        if (bias) c.row_bias = bias + g * q.CO;
        if (!shared) stage(patches, g, block);
        const int64_t of_block =
            ((g * tiling.pixel_blocks + i % tiling.pixel_blocks) * sums.count() + block) * panels_per_block;
        for (int64_t p = 0, n; p < pixels.size(); p += n) {
          n = pixels.size() - p < near * B::NR ? pixels.size() - p : near * B::NR;
          T* const panel = panels + (shared ? of_block + p / B::NR : team.rank * near) * panel_size;
          for (int64_t r = 0; r < n && !shared; r += B::NR)
            pack(patches, pixels, block, p + r, panel + r / B::NR * panel_size);
          multiply_block(outputs.size(), n, terms, weights.view(g, block).from_row(outputs.begin), panel, panel_size,
                         B::NR, c.from(outputs.begin, p), kRun<T>,
                         shared || near > 1 ? Ahead<T>{} : patches.after(p, B::NR));
        }
      }
    });
  });
}

// ---- Few outputs: packing would cost more than it saves, so the tiles read the staged rows themselves.

/// Elements of staged rows that one task reads: they stay in L2.
constexpr int64_t kBandElements = 32 << 10;

template <class T>
bool few_outputs(const Correlation& q) {
  constexpr int64_t L = kLanes<T>, kMostTerms = 1024;  // a tile reads as many rows, in one pass
  if (q.CI * q.taps > kMostTerms) return false;
  // Lanes are filled by the pixels of a row, else by the outputs. NHWC images are transposed on the way, in and out;
  // columns apart are sorted by their remainder, which takes longer than placing them pixel by pixel.
  const auto filled = [](int64_t n) { return static_cast<double>(n) / static_cast<double>(round_up(n, L)); };
  if (q.channels_last) return q.step_w == 1 && 4 * q.CO <= 3 * L && filled(q.cols) >= filled(q.CO);
  return q.CO < 2 * L && (q.step_w == 1 ? 1.2 : 0.7) * filled(q.cols) >= filled(q.CO);
}

/// Writes `outputs` channels from m on of n <= kLanes adjacent pixels, `stride` apart in `tile`, to pixel (i, j) of the
/// grid and on.
template <class T>
void write_pixels(const Correlation& q, int64_t m, int64_t outputs, int64_t n, const T* tile, int64_t stride, int64_t i,
                  int64_t j, T* image) {
  const int64_t pixel = q.output_pixel(i, j);
  if (q.channels_last) {
    const int64_t C = q.groups * q.CO;
    return store_transposed(tile, stride, outputs, n, image + pixel * C + m, q.col_step * C);
  }
  T* to = image + m * q.OH * q.OW + pixel;
  for (int64_t r = 0; r < outputs; ++r, to += q.OH * q.OW, tile += stride) {
    if (q.col_step == 1) {
      store_partial(to, load(tile), n);
    } else {
      for (int64_t l = 0; l < n; ++l) to[l * q.col_step] = tile[l];
    }
  }
}

/// What one task of correlate_few computes: a band of an image's rows, or several whole images where tiles are longer
/// than rows and borders are much of them (GridVectors; of larger ones several fit L1 less well than one).
template <class T>
struct Bands {
  int64_t rows, count;  // of a band; per image
  int64_t images, image_groups;

  explicit Bands(const Correlation& q) {
    const int64_t row_elements = q.CI * q.step_h * (q.cols * q.step_w + Span(q).width);
    const int64_t fit = std::max<int64_t>(kBandElements / row_elements, 1);
    count = ceil_div(q.rows, fit), rows = ceil_div(q.rows, count);
    // However many threads there are: which rows share a tile decides where its sums restart.
    constexpr int64_t kTasks = 16;
    const int64_t share = q.N * q.groups / kTasks;
    const bool spans_rows = ceil_div(q.cols, kLanes<T>) < scattered_vectors<T>(even_part(q.CO, Block<T>::MR));
    const bool several = count == 1 && spans_rows && q.rows <= 4 * Span(q).height;
    images = several ? std::clamp<int64_t>(std::min(fit / q.rows, share), 1, kMostScattered) : 1;
    image_groups = ceil_div(q.N, images);
  }
};

/// The vectors of a task's grid in the order in which tiles take them: those of a row in all images, then the next row.
/// So fewer tiles multiply taps that read padding for most of their rows.
struct GridVectors {
  int64_t per_row, images;
  int64_t i, n = 0, v = 0;  // the next: its row, image, and which of the row

  void next() {
    if (++v < per_row) return;
    v = 0;
    if (++n < images) return;
    n = 0, ++i;
  }
};

/// The sum runs over (t, c), taps outermost: those that only read padding above or below the image are its first or
/// last terms, and left out.
template <class T>
void correlate_few(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  constexpr int64_t L = kLanes<T>, kWidth = kMostScattered * L;
  const Bands<T> bands(q);
  const int64_t most_pixels = bands.images * bands.rows * q.cols, terms = q.CI * q.taps;
  const int64_t stage_size = PlanarPatches<T>::stage_elements(q, most_pixels, q.CI, true);
  const int64_t runs_size = bands.images * bands.rows + 1;
  const int64_t stride = packed_row_stride<T>(terms), threads = max_threads();
  const bool direct = !q.channels_last && q.col_step == 1 && q.cols >= L;  // tiles store vectors where they belong
  T* weights = context.array<T>(q.groups * q.CO * stride);
  T* stages = context.array<T>(threads * stage_size);
  T* tiles = context.array<T>(direct ? 0 : threads * q.CO * kWidth);
  Run* runs = context.array<Run>(threads * runs_size);
  int64_t* all_offsets = context.array<int64_t>(threads * terms);

  run_team(worth_threads(q), [&](const Team& team) {
    team.for_each(q.groups * q.CO, [&](int64_t i) {
      T* to = weights + i * stride;
      for (int64_t t = 0; t < q.taps; ++t)
        for (int64_t c = 0; c < q.CI; ++c) *to++ = *weight_at(q, w, i / q.CO, i % q.CO, c, t);
    });
    int64_t* offsets = all_offsets + team.rank * terms;
    T* tile = tiles + team.rank * q.CO * kWidth;
    team.for_each(bands.image_groups * q.groups * bands.count, [&](int64_t task) {
      const int64_t g = task % q.groups;
      const Range images = block_range(task / q.groups / bands.count, bands.images, q.N);
      const Range in_rows = block_range(task / q.groups % bands.count, bands.rows, q.rows);
      const int64_t first = images.begin * q.rows + in_rows.begin, grid_rows = images.size() * in_rows.size();
      PlanarPatches<T> patches(q, {first * q.cols, (first + grid_rows) * q.cols}, most_pixels,
                               runs + team.rank * runs_size, stages + team.rank * stage_size, /*always=*/true);
      patches.stage(in, g, {0, q.CI});
      const T* origin = patches.source(0, 0);
      for (int64_t t = 0; t < q.taps; ++t)
        for (int64_t c = 0; c < q.CI; ++c) offsets[t * q.CI + c] = patches.source(c, t) - origin;
      origin += patches.run(0).from;
      const AView<T> a{weights + g * q.CO * stride, stride, true};
      const int64_t image_size = q.groups * q.CO * q.OH * q.OW;
      T* const image = out + images.begin * image_size + (q.channels_last ? g : g * q.OH * q.OW) * q.CO;
      const int64_t row_vectors = ceil_div(q.cols, L), vectors = grid_rows * row_vectors;
      // A tile's rows of outputs pass all vectors before the next rows come, which writes NCHW planes in long runs.
      const int64_t step = even_part(q.CO, Block<T>::MR);
      for (int64_t m = 0; m < q.CO; m += step) {
        const int64_t outputs = q.CO - m < step ? q.CO - m : step, most = scattered_vectors<T>(outputs);
        CView<T> c{.data = tile, .row_stride = kWidth};
        if (direct) c.data = image + m * q.OH * q.OW, c.row_stride = q.OH * q.OW;
        if (bias) c.row_bias = bias + g * q.CO + m;
        GridVectors next{row_vectors, images.size(), in_rows.begin};
        for (int64_t v = 0; v < vectors; v += most) {
          const int64_t count = vectors - v < most ? vectors - v : most;
          int64_t rows[kMostScattered], starts[kMostScattered], positions[kMostScattered], columns[kMostScattered];
          T* to[kMostScattered];
          for (int64_t u = 0; u < count; ++u, next.next()) {
            // The last of a row that is stored in place ends where the row does.
            const int64_t j = direct && (next.v + 1) * L > q.cols ? q.cols - L : next.v * L;
            rows[u] = next.i, starts[u] = j, to[u] = image + next.n * image_size;
            positions[u] = next.n * patches.image_stride() + (next.i - in_rows.begin) * patches.row_stride() + j;
            columns[u] = direct ? next.n * image_size + q.output_pixel(next.i, j) : u * L;
          }
          const Range taps = taps_inside(q, rows[0], rows[count - 1]);
          c.columns = columns;
          const AView<T> of_taps{a.from_row(m).data + taps.begin * q.CI, stride, true};
          multiply_scattered(outputs, count, taps.size() * q.CI, of_taps, origin, offsets + taps.begin * q.CI,
                             positions, c, kRun<T>);
          for (int64_t u = 0; u < count && !direct; ++u)
            write_pixels(q, m, outputs, q.cols - starts[u] < L ? q.cols - starts[u] : L, tile + u * L, kWidth, rows[u],
                         starts[u], to[u]);
        }
      }
    });
  });
}

// ---- Pixels as rows

/// Packs the panel of output channels [m, m + NR) for one block of the sum: terms (t, c), channels innermost.
template <class T>
void pack_weight_panel(const Correlation& q, const T* w, int64_t g, int64_t m, Range channels, Range taps, T* panel) {
  constexpr int64_t NR = Block<T>::NR;
  const int64_t n = q.CO - m < NR ? q.CO - m : NR;
  if (q.taps > 1 && taps.size() == q.taps && weights_in_order(q)) {
    const T* from = weight_at(q, w, g, m, channels.begin, 0);
    int64_t rows[Block<T>::kDepth], *row = rows;  // where term (c, t) goes
    for (int64_t c = 0; c < channels.size(); ++c)
      for (int64_t t = 0; t < q.taps; ++t) *row++ = t * channels.size() + c;
    return pack_panel_transposed<T>(
        row - rows, n, [&](int64_t j) { return from + j * q.w_out; }, panel, [&](int64_t k) { return rows[k]; });
  }
  for (int64_t t = taps.begin; t < taps.end; ++t, panel += channels.size() * NR) {
    const T* from = weight_at(q, w, g, m, channels.begin, t);
    if (q.w_in == 1) {
      pack_panel_transposed<T>(channels.size(), n, [&](int64_t j) { return from + j * q.w_out; }, panel);
    } else if (q.w_out == 1) {
      pack_panel(channels.size(), n, from, q.w_in, panel);
    } else {
      for (int64_t c = 0; c < channels.size(); ++c)
        for (int64_t j = 0; j < NR; ++j) panel[c * NR + j] = j < n ? from[c * q.w_in + j * q.w_out] : T(0);
    }
  }
}

/// The weights of all groups in panels, [group][block of the sum][panel of outputs].
template <class T>
class WeightPanels {
 public:
  WeightPanels(const Correlation& q, const SumBlocks<T>& sums, const T* w, Context& context)
      : q_(q), sums_(sums), w_(w), panels_(ceil_div(q.CO, Block<T>::NR)) {
    data_ = context.array<T>(q.groups * sums.count() * panels_ * stride());
  }

  void pack(const Team& team) const {
    team.for_each(q_.groups * panels_, [&](int64_t i) {
      const int64_t g = i / panels_, panel = i % panels_;
      for (int64_t block = 0; block < sums_.count(); ++block)
        pack_weight_panel(q_, w_, g, panel * Block<T>::NR, sums_.channel_range(block), sums_.tap_range(block),
                          data_ + ((g * sums_.count() + block) * panels_ + panel) * stride());
    });
  }
  int64_t stride() const { return sums_.terms() * Block<T>::NR; }
  /// The panels from output m, a multiple of NR, on.
  const T* from(int64_t g, int64_t block, int64_t m) const {
    return data_ + ((g * sums_.count() + block) * panels_ + m / Block<T>::NR) * stride();
  }

 private:
  const Correlation& q_;
  const SumBlocks<T>& sums_;
  const T* w_;
  int64_t panels_;
  T* data_;
};

/// Blocks of pixels whose patches are packed.
template <class T>
void correlate_patches(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  using B = Block<T>;
  const SumBlocks<T> sums(q);
  const Tiling tiling(q, B::MC, B::MR, B::NR);
  const WeightPanels<T> weights(q, sums, w, context);
  const bool rows_adjacent = q.row_step == 1 && q.col_step == 1;
  const int64_t K = q.groups * q.CO, stride = packed_row_stride<T>(sums.terms());
  const int64_t patches_size = tiling.pixels * stride;
  T* all_patches = context.array<T>(max_threads() * patches_size);
  int64_t* all_rows = context.array<int64_t>(max_threads() * tiling.pixels);

  run_team(worth_threads(q), [&](const Team& team) {
    weights.pack(team);
    T* patches = all_patches + team.rank * patches_size;
    int64_t* rows = all_rows + team.rank * tiling.pixels;
    team.for_each(tiling.count(q), [&](int64_t i) {
      const auto [g, pixels, outputs] = tiling.task(q, i);
      if (!rows_adjacent) output_offsets(q, pixels, q.OH * q.OW * K, K, rows);
      for (int64_t block = 0; block < sums.count(); ++block) {
        const Range channels = sums.channel_range(block), taps = sums.tap_range(block);
        read_channels_last(q, in, g, pixels, taps, channels, patches, stride);
        CView<T> c{.data = out + g * q.CO + (rows_adjacent ? pixels.begin * K : 0),
                   .row_stride = K,
                   .rows = rows_adjacent ? nullptr : rows,
                   .accumulate = block > 0};
        if (bias) c.column_bias = bias + g * q.CO;
        multiply_block(pixels.size(), outputs.size(), channels.size() * taps.size(), AView<T>{patches, stride, true},
                       weights.from(g, block, outputs.begin), weights.stride(), B::NR, c.from(0, outputs.begin));
      }
    });
  });
}

/// Rows of the grid that one task takes: about MC pixels, or more where a sum has few terms, which shares the rows at
/// the edges of bands among more pixels (3 channels, 3x3/2: 1.4 times faster). Not more than leave some tasks for each
/// of a few threads, nor than keep the sums of NCHW, which wait for all terms, in L2.
template <class T>
int64_t band_rows(const Correlation& q) {
  using B = Block<T>;
  constexpr int64_t kTasks = 32;
  const int64_t pixels = q.pixels(), terms = q.CI * q.taps, each = q.channels_last ? terms : std::max(terms, q.CO);
  const int64_t fit = std::max(B::MC * B::kDepth / each, B::MC), shared = std::max(pixels / kTasks, B::MC);
  return ceil_div(q.N * q.rows, ceil_div(pixels, std::min(fit, shared)));
}

/// Whether tiles read patches where they lie: each within one grid row, so short rows leave them few sums.
template <class T>
bool reads_rows(const Correlation& q) {
  // NCHW transposes its sums, which takes longer than packing patches where outputs are many beside the terms.
  constexpr int64_t kManyTerms = 160;
  const int64_t terms = q.CI * q.taps;
  if (!q.channels_last && (q.taps == 1 || (terms < kManyTerms && 2 * terms < 5 * q.CO))) return false;
  // Packed patches fill a tile: worth it where many outputs share them. With fewer rows a tile has too few sums in
  // flight: those of 7 pixels took 1.16 times as long as packed ones (4 rows and 3, AVX2), of 14 1.07 times.
  constexpr int64_t kLeastRows = kIsa == Isa::baseline ? 3 : 5;
  const bool fills_tiles =
      (2 * q.cols >= Block<T>::MR && q.cols / ceil_div(q.cols, int64_t{Block<T>::MR}) >= kLeastRows) ||
      (q.cols >= 4 && q.CO <= 2 * Block<T>::NR);
  return fills_tiles && PixelRows<T>::pays(q, band_rows<T>(q));
}

/// Writes the sums of a band of grid rows, pixel by pixel `stride` apart, to the planes of NCHW outputs from `out` on.
template <class T>
void write_planes(const Correlation& q, Range band, int64_t outputs, const T* sums, int64_t stride, T* out) {
  const int64_t plane = q.OH * q.OW;
  const bool adjacent = q.row_step == 1 && q.col_step == 1 && q.cols == q.OW;  // rows follow each other
  for (int64_t r = band.begin, rows; r < band.end; r += rows) {
    const int64_t n = r / q.rows, i = r % q.rows, left = band.end - r;
    rows = !adjacent ? 1 : q.rows - i < left ? q.rows - i : left;
    T* const to = out + n * q.groups * q.CO * plane + q.output_pixel(i, 0);
    if (q.col_step == 1) {
      store_transposed(sums, stride, rows * q.cols, outputs, to, plane);
    } else {
      for (int64_t m = 0; m < outputs; ++m)
        for (int64_t j = 0; j < q.cols; ++j) to[m * plane + j * q.col_step] = sums[j * stride + m];
    }
    sums += rows * q.cols * stride;
  }
}

/// Bands of grid rows, whose patches tiles read where they lie. The sums of NCHW outputs are kept by pixels and
/// transposed at the end.
template <class T>
void correlate_rows(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  using B = Block<T>;
  const SumBlocks<T> sums(q, B::kDepth);
  const WeightPanels<T> weights(q, sums, w, context);
  const int64_t rows = q.N * q.rows, band = band_rows<T>(q), bands = ceil_div(rows, band);
  const int64_t K = q.groups * q.CO, plane = q.OH * q.OW, threads = max_threads();
  const int64_t stage_size = PixelRows<T>::stage_elements(q, band);
  T* stages = context.array<T>(threads * stage_size);
  const T** all_starts = context.array<const T*>(threads * band);
  Stretch* all_stretches = context.array<Stretch>(threads * sums.taps);
  const int64_t part_outputs = round_up(ceil_div(q.CO, shares_outputs(q) ? threads : 1), B::NR);
  const int64_t parts = ceil_div(q.CO, part_outputs);
  const int64_t sums_stride = packed_row_stride<T>(part_outputs);
  const int64_t sums_size = q.channels_last ? 0 : band * q.cols * sums_stride;
  T* all_sums = context.array<T>(threads * sums_size);
  const int64_t run = q.channels_last ? B::kSum : kRun<T>;  // PyTorch is the more accurate in NCHW

  run_team(worth_threads(q), [&](const Team& team) {
    weights.pack(team);
    Stretch* stretches = all_stretches + team.rank * sums.taps;
    T* const pixels = all_sums + team.rank * sums_size;
    team.for_each(q.groups * parts * bands, [&](int64_t task) {
      const int64_t g = task / bands / parts;
      const Range outputs = block_range(task / bands % parts, part_outputs, q.CO);
      const Range part = block_range(task % bands, band, rows);
      const int64_t channel = g * q.CO + outputs.begin;
      const PixelRows<T> patches(q, in, g, part, stages + team.rank * stage_size, all_starts + team.rank * band);
      for (int64_t block = 0; block < sums.count(); ++block) {
        const Range channels = sums.channel_range(block), taps = sums.tap_range(block);
        patches.stretches(taps, channels, stretches);
        const int64_t terms = channels.size() * taps.size(), near = panels_at_once<T>(terms) * B::NR;
        for (int64_t m = outputs.begin; m < outputs.end; m += near)
          for (int64_t r = part.begin; r < part.end; ++r) {
            const AView<T> a{patches.row(r - part.begin), patches.pixel_stride(), true, stretches};
            CView<T> c{.data = pixels + (r - part.begin) * q.cols * sums_stride,
                       .row_stride = sums_stride,
                       .accumulate = block > 0};
            if (q.channels_last) {
              c.data = out + (r / q.rows * plane + q.output_pixel(r % q.rows, 0)) * K + channel;
              c.row_stride = q.col_step * K;
            }
            if (bias) c.column_bias = bias + channel;
            multiply_block(q.cols, outputs.end - m < near ? outputs.end - m : near, terms, a, weights.from(g, block, m),
                           weights.stride(), B::NR, c.from(0, m - outputs.begin), run);
          }
      }
      if (!q.channels_last) write_planes(q, part, outputs.size(), pixels, sums_stride, out + channel * plane);
    });
  });
}

// ---- All

/// Output pixels that no tap reaches (stride larger than the filter): bias alone.
template <class T>
void fill_grid(const Correlation& q, const T* bias, T* out) {
  const int64_t K = q.groups * q.CO, plane = q.OH * q.OW;
  parallel_for(q.N * q.rows, q.cols * K, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t i = row % q.rows;
      T* const image = out + row / q.rows * K * plane;
      for (int64_t j = 0; j < q.cols && q.channels_last; ++j) {
        T* const pixel = image + q.output_pixel(i, j) * K;
        bias ? copy(bias, K, pixel) : zero(K, pixel);
      }
      for (int64_t k = 0; k < K && !q.channels_last; ++k) {
        T* const first = image + k * plane + q.output_pixel(i, 0);
        for (int64_t j = 0; j < q.cols; ++j) first[j * q.col_step] = bias ? bias[k] : T(0);
      }
    }
  });
}

/// Whether out is a product of matrices in memory: NHWC, the pixels times W^T; NCHW, W times the planes of each image,
/// if they fill two panels and more. Of small planes it does not pay with AVX-512, whose panels are so wide that many
/// outputs are better off with packed ones of pixels of several images, and where the weights are transposed, and so
/// many that each image would fetch and pack them again. (A phase of a strided backward pass writes only some of its
/// pixels.)
template <class T>
bool is_product(const Correlation& q) {
  constexpr int64_t kManyWeights = (512 << 10) / sizeof(T);
  const bool packs_again = q.N > 1 && q.w_in != 1 && q.CO * q.CI > kManyWeights;
  const int64_t panels = packs_again || (kIsa == Isa::avx512 && q.CO >= 2 * kLanes<T>) ? 16 : 2;
  return reads_same_pixel(q) && q.OH == q.IH && q.OW == q.IW && q.groups == 1 && (q.w_in == 1 || q.w_out == 1) &&
         (q.channels_last || q.IH * q.IW >= panels * Block<T>::NR);
}

template <class T>
void multiply(const Correlation& q, const T* in, const T* w, const T* bias, T* out, Context& context) {
  const auto& gemm = kernel_table<GemmKernels<T>, kIsa>();
  const int64_t plane = q.IH * q.IW;
  if (q.channels_last) {
    // PyTorch's errors of several images of one pixel, and of filters as large as theirs, were half of ours in longer
    // runs.
    const int64_t run = plane > 1 || q.N == 1 ? 0 : Block<T>::kSum / 2;
    const Gemm product{.M = q.pixels(),
                       .N = q.CO,
                       .K = q.CI,
                       .a_row = q.CI,
                       .a_col = 1,
                       .b_row = q.w_in,
                       .b_col = q.w_out,
                       .c_row = q.CO,
                       .run = run};
    return gemm.multiply(product, in, w, bias, out, context);
  }
  const Gemm product{.M = q.CO,
                     .N = plane,
                     .K = q.CI,
                     .a_row = q.w_out,
                     .a_col = q.w_in,
                     .b_row = plane,
                     .b_col = 1,
                     .c_row = plane,
                     .batch = q.N,
                     .run = kRun<T>,
                     .bias_per_row = true,
                     .b_batch = q.CI * plane,
                     .c_batch = q.CO * plane};
  gemm.multiply(product, w, in, bias, out, context);
}

template <class T>
void correlate(Correlation q, Pass pass, const T* in, const T* w, const T* bias, T* out, Context& context) {
  if (q.pixels() == 0 || q.CO == 0) return;
  if (q.taps == 0 || q.CI == 0) return fill_grid(q, bias, out);
  if (is_depthwise_pixels(q)) return depthwise_pixels(q, in, w, bias, out, context);
  if constexpr (std::is_same_v<T, float>)
    if (const int tile = winograd_tile(q, pass)) return winograd(q, tile, in, w, bias, out, context);
  if (is_product<T>(q)) return multiply(q, in, w, bias, out, context);
  if (q.groups == 1) q = flattened(q);
  if (few_outputs<T>(q)) return correlate_few(q, in, w, bias, out, context);
  if (reads_rows<T>(q)) return correlate_rows(q, in, w, bias, out, context);
  q.channels_last ? correlate_patches(q, in, w, bias, out, context) : correlate_planar(q, in, w, bias, out, context);
}

template <class T>
void forward(const Conv2d& p, const T* x, const T* w, const T* bias, T* y, Context& context) {
  if (covers_image(p)) return forward(of_one_pixel(p), x, w, bias, y, context);
  if (!p.channels_last && reads_sampled_pixels(p))
    return forward(over_samples(p), sampled_pixels(p, x, samples_of<T>(p, context)), w, bias, y, context);
  if (is_depthwise_planes<T>(p)) return depthwise_planes(p, x, w, bias, y);
  const Correlation q = forward_correlation(p, context);
  if (q.pixels() > 0 && prefers_narrow<T>(q)) return correlate_narrow(&q, 1, x, w, bias, y, context);
  correlate(q, Pass::forward, x, w, bias, y, context);
}

/// Winograd's tiles of up to 3 x 3 taps make up for reordering the weights with a fourth of the pixels.
template <class T>
bool prefers_col2im(const Conv2d& p, Context& context) {
  if (!has_few_pixels(p)) return false;
  const bool strided = p.stride_h * p.stride_w > 1;
  if (!std::is_same_v<T, float> || strided || p.R > 3 || p.S > 3 || 4 * p.N * p.OH * p.OW <= p.K) return true;
  int64_t* const taps = context.array<int64_t>(3 * p.R * p.S);
  return winograd_tile(backward_correlation(p, 0, 0, taps), Pass::backward_input) == 0;
}

/// The bias of each element of x, or null.
template <class T>
const T* bias_of_elements(const Conv2d& p, const T* bias, Context& context) {
  if (!bias) return nullptr;
  T* const all = context.array<T>(p.C * p.H * p.W);
  for (int64_t i = 0; i < p.C * p.H * p.W; ++i) all[i] = bias[p.channels_last ? i % p.C : i / (p.H * p.W)];
  return all;
}

template <class T>
void backward_input(const Conv2d& p, const T* dy, const T* w, const T* bias, T* dx, Context& context) {
  if (covers_image(p)) return backward_input(of_one_pixel(p), dy, w, bias_of_elements(p, bias, context), dx, context);
  if (reads_sampled_pixels(p)) {
    T* const samples = samples_of<T>(p, context);
    backward_input(over_samples(p), dy, w, bias, samples, context);
    return spread_pixels(p, samples, bias, dx);
  }
  if (!bias && is_depthwise_planes<T>(p)) return depthwise_planes_input(p, dy, w, dx);
  if (prefers_col2im<T>(p, context))
    return (p.channels_last ? col2im_pixels<T> : col2im_planes<T>)(p, dy, w, bias, dx, context);
  const int64_t phases_h = p.stride_h < p.H ? p.stride_h : p.H, phases_w = p.stride_w < p.W ? p.stride_w : p.W;
  Correlation* phases = context.array<Correlation>(phases_h * phases_w);
  int64_t* taps = context.array<int64_t>(3 * p.R * p.S);  // one list for all phases: each tap belongs to one
  int64_t count = 0, used = 0;
  for (int64_t phase_h = 0; phase_h < phases_h; ++phase_h)
    for (int64_t phase_w = 0; phase_w < phases_w; ++phase_w) {
      phases[count] = backward_correlation(p, phase_h, phase_w, taps + used);
      used += phases[count++].taps;
    }
  if (count == 0) return;
  if (phases->pixels() > 0 && used > 0 && prefers_narrow<T>(*phases))
    return correlate_narrow(phases, count, dy, w, bias, dx, context);
  const Phases all{phases, phases_h, phases_w};
  if (phases->pixels() > 0 && used > 0 && prefers_joint<T>(all)) {
    const JointPhases<T> joint(all, w, bias, context);
    correlate(joint.correlation(), Pass::backward_input, dy, joint.weights(), joint.bias(), joint.out(), context);
    return joint.spread(dx);
  }
  for (int64_t i = 0; i < count; ++i) correlate(phases[i], Pass::backward_input, dy, w, bias, dx, context);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(Conv2dKernels<float>, {forward<float>, backward_input<float>})
DLK_KERNEL_TABLE(Conv2dKernels<double>, {forward<double>, backward_input<double>})
