// Convolution gradient to the weight: dw[k, c, t] = sum over pixels p of dy[k, p] patch(c, t, p), by Winograd's
// algorithm (winograd_weight.cpp) or directly (depthwise_*.cpp, narrow_groups.cpp, small_weight.cpp) where those are
// faster, else by implicit GEMM.
//
// Computed transposed, per group: dwT[(c, t) x CO] += Patches[(c, t) x pixels] dyT[pixels x CO], one block of pixels
// after the other. That way patches are the operand that needs no transposing: NCHW reads each (c, t) as a row, NHWC,
// and NCHW that is staged so, as a column, mostly where the pixels lie (PixelRows). Pixels are cut into a fixed number
// of splits, each with sums of its own, which are then added in order: tasks (group, split, part of the rows) are cut
// by shape alone, so the result does not depend on the threads, and sums restart within a block, which bounds their
// rounding error. The sums of few pixels are stored as dw, where its weights are in that order. Many inputs of few
// outputs change places with them (by_phases). Filters as large as the image (of_one_pixel) and 1 x 1 filters are a
// product of matrices in memory, or a sum of such products: over parts of the NHWC pixels, or over NCHW images.
#include "csrc/core/conv2d.h"
#include "csrc/core/gemm.h"
#include "csrc/cpu/depthwise_planes.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/narrow_groups.h"
#include "csrc/cpu/patches.h"
#include "csrc/cpu/sampled_pixels.h"
#include "csrc/cpu/small_weight.h"
#include "csrc/cpu/winograd.h"

namespace dlk::cpu {
namespace {

using namespace DLK_ISA;

/// Enough tasks to balance a few threads.
constexpr int64_t kTasks = 8;
/// Pixels of a block: as many as keep a panel of dy in L1 with the rows of patches that pass by. kOneBlock or fewer
/// are one block.
constexpr int64_t kBlock = 256, kOneBlock = 512, kLeastBlock = 128;
/// Pixels that are worth sums of their own: writing and adding those takes as long as multiplying 50 pixels.
constexpr int64_t kSplitPixels = 1024;
/// Rows (c, t) of a block: what a task may take at least.
constexpr int64_t kRows = 128;
/// Elements that the splits' sums may take together.
constexpr int64_t kMostPartial = int64_t{8} << 20;
/// Pixels after which sums restart within a block, which bounds their rounding error: 64 where all pixels are one
/// block, since PyTorch sums few pixels more accurately (8 images of 7 x 7: with 128 the largest error was 2.1 times
/// its, with 64 1.6 times); else 128, where 64 would take 3 % longer.
inline int64_t sum_pixels(const Correlation& q) { return q.pixels() <= kOneBlock ? 64 : 128; }

/// How the work is cut. Rows come in the blocks of SumBlocks, whose rows are adjacent in dwT.
template <class T>
struct Cut {
  bool channels_innermost;  // rows are (t, c), else (c, t)
  SumBlocks<T> rows;
  int64_t row_count, block_pixels, pixel_blocks, splits, row_parts;
  bool in_place;  // one split of one block, whose sums are dw itself: its rows are adjacent

  Cut(const Correlation& q, bool channels_innermost)
      : channels_innermost(channels_innermost), rows(q, kRows, channels_innermost), row_count(q.CI * q.taps) {
    block_pixels = q.pixels() <= kOneBlock ? q.pixels() : kBlock;
    // One block of rows is shared by its pixels; the sums are few.
    const bool by_pixels = rows.count() == 1 && worth_threads(q);
    if (by_pixels) block_pixels = std::clamp(ceil_div(q.pixels(), kTasks), std::min(q.pixels(), kLeastBlock), kBlock);
    pixel_blocks = ceil_div(q.pixels(), block_pixels);
    const int64_t wanted = ceil_div(kTasks, q.groups), room = kMostPartial / (q.groups * row_count * q.CO);
    splits = by_pixels ? pixel_blocks : ceil_div(q.pixels(), kSplitPixels);
    if (splits > wanted) splits = wanted;
    if (splits > room) splits = room > 1 ? room : 1;
    const int64_t parts = ceil_div(wanted, splits);
    row_parts = parts < rows.count() ? parts : rows.count();
    in_place = pixel_blocks == 1 &&
               (channels_innermost ? q.w_in == 1 && taps_in_order(q, q.CI) : q.w_in == q.taps && taps_in_order(q, 1));
  }

  /// The i-th of `parts` shares of n.
  static Range share(int64_t i, int64_t parts, int64_t n) { return {n * i / parts, n * (i + 1) / parts}; }
  /// The first row of a block.
  int64_t first_row(const Correlation& q, int64_t block) const {
    const Range channels = rows.channel_range(block), taps = rows.tap_range(block);
    return channels_innermost ? taps.begin * q.CI + channels.begin : channels.begin * q.taps + taps.begin;
  }
  int64_t block_rows(int64_t block) const { return rows.channel_range(block).size() * rows.tap_range(block).size(); }
};

/// Pixels [pixels), counted through the images, of n <= NR adjacent channels of C from `from` on, NCHW, as a panel
/// [pixels][NR].
template <class T>
void pack_planes(const T* from, int64_t C, int64_t plane, Range pixels, int64_t n, T* panel) {
  for (int64_t p = pixels.begin; p < pixels.end;) {  // one image at a time
    const int64_t image_end = (p / plane + 1) * plane, end = image_end < pixels.end ? image_end : pixels.end;
    const T* first = from + p / plane * C * plane + p % plane;
    pack_panel_transposed<T>(end - p, n, [&](int64_t j) { return first + j * plane; }, panel);
    panel += (end - p) * Block<T>::NR;
    p = end;
  }
}

/// dy of one block of pixels, as panels [pixels][NR] of output channels.
template <class T>
void pack_gradient(const Correlation& q, const T* dy, int64_t g, Range pixels, T* panels) {
  constexpr int64_t NR = Block<T>::NR;
  const int64_t K = q.groups * q.CO, plane = q.OH * q.OW;
  for (int64_t k = 0; k < q.CO; k += NR, panels += pixels.size() * NR) {
    const int64_t n = q.CO - k < NR ? q.CO - k : NR, channel = g * q.CO + k;
    if (q.channels_last)
      pack_panel(pixels.size(), n, dy + pixels.begin * K + channel, K, panels);
    else
      pack_planes(dy + channel * plane, K, plane, pixels, n, panels);
  }
}

/// Memory of one thread.
template <class T>
struct Buffers {
  T *gradient, *patches, *stage;
  Run* runs;           // NCHW, packed
  bool reads_rows;     // instead of packed patches; then:
  Stretch* stretches;  // the rows of a block
  const T** starts;    // where they are
};

/// Grid rows that a block of pixels may touch.
template <class T>
int64_t most_rows(const Correlation& q, const Cut<T>& cut) {
  return ceil_div(cut.block_pixels, q.cols) + 1;
}

/// Whether patches are read where they lie, in NHWC pixels, or, if a tap could fall outside of the image or pixels are
/// NCHW, in staged rows: not where pixels are so far apart that they share cache sets, nor where staging all taps for
/// each part of the rows takes longer than packing each tap once.
template <class T>
bool reads_rows(const Correlation& q, const Cut<T>& cut) {
  constexpr int64_t kTranspose = 4;  // copies in the time of transposing NCHW
  const bool inside = q.channels_last && Span(q).inside(q);
  if (2 * q.step_w * (inside ? q.groups : 1) * q.CI > kFarStride<T>) return false;
  const int64_t copies = cut.row_parts * q.step_h * q.step_w * (q.channels_last ? 1 : kTranspose);
  return inside || (copies < q.taps && PixelRows<T>::pays(q, most_rows(q, cut)));
}

/// Adds the products of blocks [row_blocks) of rows and one block of pixels to the sums (c, t) x CO.
template <class T>
void add_block(const Correlation& q, const Cut<T>& cut, const T* in, int64_t g, Range pixels, Range row_blocks,
               const Buffers<T>& buffers, const CView<T>& sums) {
  constexpr int64_t NR = Block<T>::NR;
  const auto multiply_rows = [&](int64_t first, int64_t count, const AView<T>& a) {
    multiply_block(count, q.CO, pixels.size(), a, buffers.gradient, pixels.size() * NR, NR, sums.from(first, 0),
                   sum_pixels(q));
  };
  const auto multiply = [&](int64_t block, const AView<T>& a) {
    multiply_rows(cut.first_row(q, block), cut.block_rows(block), a);
  };
  if (buffers.reads_rows) {
    const Range rows{pixels.begin / q.cols, ceil_div(pixels.end, q.cols)};
    const PixelRows<T> patches(q, in, g, rows, buffers.stage, buffers.starts);
    const T* const origin = patches.row(0);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t begin = r * q.cols < pixels.begin ? pixels.begin - r * q.cols : 0;
      const int64_t end = (r + 1) * q.cols < pixels.end ? q.cols : pixels.end - r * q.cols;
      const int64_t at = patches.row(r - rows.begin) - origin + begin * patches.pixel_stride();
      buffers.stretches[r - rows.begin] = {at, end - begin};
    }
    for (int64_t block = row_blocks.begin; block < row_blocks.end; ++block) {
      const Range channels = cut.rows.channel_range(block), taps = cut.rows.tap_range(block);
      for (int64_t t = taps.begin, adjacent; t < taps.end; t += adjacent) {
        // The channels of taps that read adjacent pixels are adjacent rows.
        adjacent = 1;
        while (t + adjacent < taps.end && patches.offset(t + adjacent, channels.begin) ==
                                              patches.offset(t, channels.begin) + adjacent * channels.size())
          ++adjacent;
        multiply_rows(t * q.CI + channels.begin, adjacent * channels.size(),
                      {origin + patches.offset(t, channels.begin), patches.pixel_stride(), false, buffers.stretches});
      }
    }
    return;
  }
  if (q.channels_last) {
    const int64_t stride = packed_row_stride<T>(cut.rows.terms());
    for (int64_t block = row_blocks.begin; block < row_blocks.end; ++block) {
      read_channels_last(q, in, g, pixels, cut.rows.tap_range(block), cut.rows.channel_range(block), buffers.patches,
                         stride);
      multiply(block, {buffers.patches, stride, false});
    }
    return;
  }
  const int64_t stride = packed_row_stride<T>(cut.block_pixels);
  PlanarPatches<T> patches(q, pixels, cut.block_pixels, buffers.runs, buffers.stage);
  for (int64_t block = row_blocks.begin; block < row_blocks.end; ++block) {
    const Range channels = cut.rows.channel_range(block), taps = cut.rows.tap_range(block);
    patches.stage(in, g, channels);
    T* row = buffers.patches;
    for (int64_t c = 0; c < channels.size(); ++c)
      for (int64_t t = taps.begin; t < taps.end; ++t, row += stride) patches.read(c, t, row);
    multiply(block, {buffers.patches, stride, true});
  }
}

/// dw of kLanes rows from `row` on: the splits' sums, added in order, and transposed; partial is [split][row][CO].
template <class T>
void add_splits(const Correlation& q, const Cut<T>& cut, const T* partial, int64_t g, int64_t row, T* dw) {
  constexpr int64_t L = kLanes<T>;
  const int64_t rows = cut.row_count - row < L ? cut.row_count - row : L, size = cut.row_count * q.CO;
  const auto offset = [&](int64_t i) {  // of row i in dw
    return cut.channels_innermost ? i % q.CI * q.w_in + q.weight[i / q.CI] : i / q.taps * q.w_in + q.weight[i % q.taps];
  };
  bool adjacent = true;
  for (int64_t i = 1; i < rows; ++i) adjacent &= offset(row + i) == offset(row) + i;
  for (int64_t k = 0; k < q.CO; k += L) {
    const int64_t outputs = q.CO - k < L ? q.CO - k : L;
    T sums[L * L];
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = partial + (row + i) * q.CO + k;
      Vec<T> sum = load_partial(from, outputs);
      for (int64_t split = 1; split < cut.splits; ++split) sum += load_partial(from + split * size, outputs);
      store(sums + i * L, sum);
    }
    T* to = dw + g * q.w_group + k * q.w_out;
    if (adjacent) {
      store_transposed(sums, L, rows, outputs, to + offset(row), q.w_out);
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t l = 0; l < outputs; ++l) to[l * q.w_out + offset(row + i)] = sums[i * L + l];
    }
  }
}

/// Whether dw is a product of matrices, dy^T x: 1 x 1 filters, and enough tiles for a few threads, which cannot share a
/// sum. NHWC pixels are such matrices in memory; of NCHW images it pays where they are small.
template <class T>
bool is_product(const Correlation& q) {
  return reads_same_pixel(q) && q.groups == 1 && q.w_in == 1 && q.CO > 1 &&
         (q.channels_last || q.IH * q.IW <= kOneBlock) &&
         ceil_div(q.CO, Block<T>::MR) * ceil_div(q.CI, Block<T>::NR) >= kTasks;
}

/// dw = the sum over images of dy x^T, whose planes are the rows: tiles read dy where it lies, each image a stretch of
/// terms, and x from panels. Threads share the outputs; each packs x for itself.
template <class T>
void multiply_planes(const Correlation& q, const T* x, const T* dy, T* dw, Context& context) {
  using B = Block<T>;
  const int64_t plane = q.IH * q.IW, images = even_part(q.N, kOneBlock / plane);
  const int64_t threads = worth_threads(q) ? max_threads() : 1;
  const int64_t panels_size = round_up(q.CI, B::NR) * images * plane;
  T* all_panels = context.array<T>(threads * panels_size);
  Stretch* all_stretches = context.array<Stretch>(threads * images);
  const int64_t part = round_up(ceil_div(q.CO, threads), B::MR), parts = ceil_div(q.CO, part);

  run_team(worth_threads(q), [&](const Team& team) {
    T* const panels = all_panels + team.rank * panels_size;
    Stretch* const stretches = all_stretches + team.rank * images;
    for (int64_t n = 0; n < images; ++n) stretches[n] = {n * q.CO * plane, plane};
    team.for_each(parts, [&](int64_t task) {
      const Range outputs = block_range(task, part, q.CO);
      for (int64_t first = 0; first < q.N; first += images) {
        const int64_t pixels = (q.N - first < images ? q.N - first : images) * plane;
        for (int64_t c = 0; c < q.CI; c += B::NR)
          pack_planes(x + c * plane, q.CI, plane, {first * plane, first * plane + pixels},
                      q.CI - c < B::NR ? q.CI - c : B::NR, panels + c * pixels);
        for (int64_t m = outputs.begin; m < outputs.end; m += B::MC) {
          const AView<T> a{dy + (first * q.CO + m) * plane, plane, true, stretches};
          const CView<T> c{.data = dw + m * q.w_out, .row_stride = q.w_out, .accumulate = first > 0};
          multiply_block(outputs.end - m < B::MC ? outputs.end - m : B::MC, q.CI, pixels, a, panels, pixels * B::NR,
                         B::NR, c, sum_pixels(q));
        }
      }
    });
  });
}

/// dw = dy^T x, or, of many pixels where there are more outputs than inputs, dw^T = x^T dy, which is then transposed:
/// the longer side of dw should be the product's columns, since panels are packed in runs, and rows in short pieces.
template <class T>
void multiply(const Correlation& q, const T* x, const T* dy, T* dw, Context& context) {
  if (!q.channels_last) return multiply_planes(q, x, dy, dw, context);
  constexpr int64_t kManyPixels = 32;  // per input channel: the product takes much longer than transposing
  const bool transposed = q.CO > q.CI && q.pixels() >= kManyPixels * q.CI;
  const int64_t M = transposed ? q.CI : q.CO, N = transposed ? q.CO : q.CI;
  const Gemm product{.M = M,
                     .N = N,
                     .K = q.pixels(),
                     .a_row = 1,
                     .a_col = M,
                     .b_row = N,
                     .b_col = 1,
                     .c_row = transposed ? N : q.w_out,
                     .run = sum_pixels(q)};
  T* const to = transposed ? context.array<T>(M * N) : dw;
  kernel_table<GemmKernels<T>, kIsa>().multiply(product, transposed ? x : dy, transposed ? dy : x, nullptr, to,
                                                context);
  if (transposed) store_transposed(to, N, M, N, dw, q.w_out);
}

/// Parts of the pixels that are a product each: of NHWC a number that keeps a few threads busy, NCHW images.
int64_t product_parts(const Correlation& q) { return !q.channels_last ? q.N : q.pixels() >= kSplitPixels ? kTasks : 1; }

/// Whether dw is a sum of such products: of few tiles, or of large images. A side of dw should fill a panel's vectors,
/// and NCHW's dot products should take longer than adding their lanes.
template <class T>
bool is_sum_of_products(const Correlation& q) {
  return reads_same_pixel(q) && q.groups == 1 && q.w_in == 1 && std::max(q.CO, q.CI) >= 2 * kLanes<T> &&
         (q.channels_last || q.IH * q.IW >= 8 * kLanes<T>) && (product_parts(q) + 1) * q.CO * q.CI <= kMostPartial;
}

/// dw = the sum over parts of the pixels of dy^T x, or its transpose if CO is the longer side.
template <class T>
void add_products(const Correlation& q, const T* x, const T* dy, T* dw, Context& context) {
  const bool transposed = q.CO > q.CI, pixels_last = !q.channels_last;
  const int64_t M = std::min(q.CI, q.CO), N = std::max(q.CI, q.CO), size = M * N;
  const int64_t parts = product_parts(q), K = q.pixels() / parts, left = q.pixels() - parts * K;
  Gemm product{.M = M,
               .N = N,
               .K = K,
               .a_row = pixels_last ? K : 1,
               .a_col = pixels_last ? 1 : M,
               .b_row = pixels_last ? 1 : N,
               .b_col = pixels_last ? K : 1,
               .c_row = N,
               .batch = parts,
               .run = sum_pixels(q),
               .a_batch = K * M,
               .b_batch = K * N,
               .c_batch = size};
  const T *const a = transposed ? x : dy, *const b = transposed ? dy : x;
  T* const sums = context.array<T>((parts + 1) * size);
  const auto& gemm = kernel_table<GemmKernels<T>, kIsa>();
  gemm.multiply(product, a, b, nullptr, sums, context);
  if (left > 0) {
    product.K = left, product.batch = 1;
    gemm.multiply(product, a + parts * K * M, b + parts * K * N, nullptr, sums + parts * size, context);
  }
  for (int64_t i = 1; i < parts + (left > 0); ++i)
    for_each_vec<T>(size, [&](int64_t at, auto lanes) {
      store_n(sums + at, load_n(sums + at, lanes) + load_n(sums + i * size + at, lanes), lanes);
    });
  if (transposed) return store_transposed(sums, N, M, N, dw, q.w_out);
  for (int64_t k = 0; k < q.CO; ++k) copy(sums + k * q.CI, q.CI, dw + k * q.w_out);
}

/// dw by implicit GEMM, from patches of x and pixels of dy, all of whose image is the grid of q. (by_phases has x and
/// dy change places.)
template <class T>
void implicit_gemm(const Correlation& q, const T* x, const T* dy, T* dw, Context& context) {
  using B = Block<T>;
  Cut<T> cut(q, /*channels_innermost=*/true);
  const bool rows = reads_rows(q, cut);
  if (!rows && !q.channels_last) cut = Cut<T>(q, false);
  const int64_t size = cut.row_count * q.CO;
  T* partial = context.array<T>(cut.in_place ? 0 : q.groups * cut.splits * size);

  const int64_t threads = max_threads();
  const int64_t gradient_size = cut.block_pixels * round_up(q.CO, B::NR);
  const int64_t patches_size = rows ? 0
                               : q.channels_last
                                   ? cut.block_pixels * packed_row_stride<T>(cut.rows.terms())
                                   : cut.rows.terms() * packed_row_stride<T>(cut.block_pixels) + kLanes<T>;
  const int64_t stage_size = rows ? PixelRows<T>::stage_elements(q, most_rows(q, cut))
                             : q.channels_last
                                 ? 0
                                 : PlanarPatches<T>::stage_elements(q, cut.block_pixels, cut.rows.channels);
  T* gradients = context.array<T>(threads * gradient_size);
  T* patches = context.array<T>(threads * patches_size);
  T* stages = context.array<T>(threads * stage_size);
  Run* runs = context.array<Run>(threads * (cut.block_pixels + 2));
  Stretch* stretches = context.array<Stretch>(threads * most_rows(q, cut));
  const T** starts = context.array<const T*>(threads * most_rows(q, cut));

  run_team(worth_threads(q), [&](const Team& team) {
    const Buffers<T> buffers{gradients + team.rank * gradient_size,
                             patches + team.rank * patches_size,
                             stages + team.rank * stage_size,
                             runs + team.rank * (cut.block_pixels + 2),
                             rows,
                             stretches + team.rank * most_rows(q, cut),
                             starts + team.rank * most_rows(q, cut)};
    team.for_each(q.groups * cut.splits * cut.row_parts, [&](int64_t task) {
      const int64_t split = task / cut.row_parts % cut.splits, g = task / cut.row_parts / cut.splits;
      const Range row_blocks = Cut<T>::share(task % cut.row_parts, cut.row_parts, cut.rows.count());
      const Range blocks = Cut<T>::share(split, cut.splits, cut.pixel_blocks);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t begin = block * cut.block_pixels, end = begin + cut.block_pixels;
        const Range pixels{begin, end < q.pixels() ? end : q.pixels()};
        pack_gradient(q, dy, g, pixels, buffers.gradient);
        CView<T> sums{
            .data = partial + (g * cut.splits + split) * size, .row_stride = q.CO, .accumulate = block > blocks.begin};
        if (cut.in_place) sums = {.data = dw + g * q.w_group, .row_stride = 1, .column_stride = q.w_out};
        add_block(q, cut, x, g, pixels, row_blocks, buffers, sums);
      }
    });
    if (cut.in_place) return;
    const int64_t parts = ceil_div(cut.row_count, kLanes<T>);
    team.for_each(q.groups * parts, [&](int64_t i) {
      const int64_t g = i / parts;
      add_splits(q, cut, partial + g * cut.splits * size, g, i % parts * kLanes<T>, dw);
    });
  });
}

/// Few outputs would leave most of a panel empty, and patches of many inputs take longer to pack than to multiply. The
/// correlations of the gradient to the input have the same products the other way round: patches of dy, in panels the
/// channels of x, of which each phase of the stride sees pixels of its own. Costs are copied elements; not where x has
/// many more pixels than are read.
template <class T>
bool prefers_phases(const Conv2d& p, const Correlation& q) {
  constexpr int64_t kMostPhases = 9;  // each has buffers of its own
  const int64_t phases = p.stride_h * p.stride_w, pixels = p.H * p.W, patches = p.OH * p.OW;
  if (q.groups > 1 || phases > kMostPhases || p.stride_h > p.H || p.stride_w > p.W) return false;
  if (pixels > 2 * phases * patches || (q.CI < kLanes<T> && has_small_weight<T>(q))) return false;
  return 10 * (pixels * q.CI + ceil_div(pixels, phases) * q.taps * q.CO) < 7 * patches * q.taps * q.CI;
}

template <class T>
void by_phases(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context) {
  const bool strided = p.stride_h * p.stride_w > 1;
  const int64_t most = ceil_div(p.H, p.stride_h) * ceil_div(p.W, p.stride_w);
  T* const image = strided ? context.array<T>(p.N * p.C * most) : nullptr;
  int64_t* const taps = context.array<int64_t>(3 * p.R * p.S);
  for (int64_t phase_h = 0; phase_h < p.stride_h; ++phase_h)
    for (int64_t phase_w = 0; phase_w < p.stride_w; ++phase_w) {
      Correlation q = backward_correlation(p, phase_h, phase_w, taps);
      if (q.taps == 0) continue;
      const T* pixels = x;
      if (strided) {
        Conv2d phase = p;
        phase.OH = q.rows, phase.OW = q.cols;
        pixels = sampled_pixels(phase, x + q.output_pixel(0, 0) * (p.channels_last ? p.C : 1), image);
      }
      q.OH = q.rows, q.OW = q.cols, q.row0 = q.col0 = 0, q.row_step = q.col_step = 1;
      implicit_gemm(q, dy, pixels, dw, context);
    }
}

template <class T>
void backward_weight(const Conv2d& p, const T* x, const T* dy, T* dw, Context& context) {
  if (covers_image(p)) return backward_weight(of_one_pixel(p), x, dy, dw, context);
  if (reads_sampled_pixels(p))
    return backward_weight(over_samples(p), sampled_pixels(p, x, samples_of<T>(p, context)), dy, dw, context);
  if (is_depthwise_planes<T>(p)) return depthwise_planes_weight(p, x, dy, dw, context);
  const Correlation q = forward_correlation(p, context);
  if (q.pixels() == 0) return zero(q.groups * q.CO * q.CI * q.taps, dw);
  if (is_depthwise_pixels(q)) return depthwise_pixels_weight(q, x, dy, dw, context);
  if (has_narrow_groups<T>(q)) return narrow_weight(q, x, dy, dw, context);
  if (is_product<T>(q)) return multiply(q, x, dy, dw, context);
  if (is_sum_of_products<T>(q)) return add_products(q, x, dy, dw, context);
  if (prefers_phases<T>(p, q)) return by_phases(p, x, dy, dw, context);
  if (has_small_weight<T>(q)) return small_weight(q, x, dy, dw, context);
  if constexpr (std::is_same_v<T, float>)
    if (const int tile = winograd_tile(q, Pass::backward_weight)) return winograd_weight(q, tile, x, dy, dw, context);
  implicit_gemm(q, x, dy, dw, context);
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(Conv2dWeightKernels<float>, {backward_weight<float>})
DLK_KERNEL_TABLE(Conv2dWeightKernels<double>, {backward_weight<double>})
