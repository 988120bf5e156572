// Patches of a correlation's input, made readable for the GEMM kernel block by block: copied into panels (NCHW), read
// where they lie in padded rows of pixels (either layout), or copied into rows (NHWC, small or far-apart images).
// Implicit im2col, of which only one block, small enough for the L2 cache, exists at a time.
//
// A block is a range of output pixels, counted through all images (n, i, j), so that small images share a block.
#pragma once

#include <algorithm>

#include "csrc/cpu/correlation.h"

namespace dlk::cpu::DLK_ISA {

/// Pixels of a block: as many as keep KC rows of patches (256 KiB) in L2 with the weights that pass by.
constexpr int64_t kBlockPixels = 256;

/// Pixel p as image and grid position.
struct Pixel {
  int64_t n, i, j;
  Pixel(const Correlation& q, int64_t p) : n(p / (q.rows * q.cols)), i(p / q.cols % q.rows), j(p % q.cols) {}

  DLK_INLINE void next(const Correlation& q) {
    if (++j < q.cols) return;
    j = 0;
    if (++i < q.rows) return;
    i = 0, ++n;
  }
};

/// Which of `width` staged columns lie in an input row, the first at its column `left`: those of [begin, end).
inline Range columns_inside(const Correlation& q, int64_t left, int64_t width) {
  const int64_t begin = left < 0 ? -left : 0, end = q.IW - left < width ? q.IW - left : width;
  return begin < end ? Range{begin, end} : Range{width, width};
}

// ---- NCHW: rows of the image are contiguous.

/// Consecutive pixels of a block whose sources are consecutive: to[to_begin + l] = source[from + l].
struct Run {
  int64_t to, from, length;
};

/// Reads the patches of one block of pixels from NCHW images. Where a tap could fall outside of its image, or pixels
/// step over columns, the rows that the block needs are first staged in a buffer: padded with zeros, columns sorted by
/// their remainder modulo step_w. From there (or from the image itself) every tap is a set of contiguous runs.
template <class T>
class PlanarPatches {
 public:
  /// Elements of stage memory that `channels` channels of any block of `pixels` pixels need.
  static int64_t stage_elements(const Correlation& q, int64_t pixels, int64_t channels, bool always = false) {
    const Span span(q);
    if (!always && in_place(q, span)) return 0;
    // A block touches at most this many images and rows; each image adds the height of the taps.
    const int64_t images = ceil_div(pixels, q.rows * q.cols) + 1;
    const int64_t rows = ceil_div(pixels, q.cols) + images;
    const int64_t in_rows = rows * q.step_h + images * (span.height + q.step_h);
    return channels * (in_rows * stage_width(q, span) + kLanes<T>);
  }

  /// `always` stages even what could be read where it lies: readers may then overrun a row by a vector.
  /// `runs`: room for pixels + pixels / cut + 1 runs; they end at multiples of `cut` pixels.
  PlanarPatches(const Correlation& q, Range pixels, int64_t cut, Run* runs, T* stage, bool always = false)
      : q_(q), span_(q), in_place_(!always && in_place(q, span_)), pixels_(pixels), runs_(runs), stage_(stage) {
    width_ = in_place_ ? q.IW : stage_width(q, span_);
    plane_ = in_place_ ? q.IH * q.IW : 0;
    int64_t p = pixels.begin;
    while (p < pixels.end) {  // one image at a time
      const Pixel first(q, p);
      const int64_t image_end = (first.n + 1) * q.rows * q.cols;
      const int64_t end = image_end < pixels.end ? image_end : pixels.end;
      const Pixel last(q, end - 1);
      const int64_t origin = in_place_ ? first.n * q.groups * q.CI * q.IH * q.IW + first.i * q.step_h * width_ : plane_;
      for (int64_t i = first.i; i <= last.i; ++i) {
        const int64_t j0 = i == first.i ? first.j : 0, j1 = i == last.i ? last.j + 1 : q.cols;
        add_run(p - pixels.begin, origin + (i - first.i) * q.step_h * width_ + j0, j1 - j0, cut);
        p += j1 - j0;
      }
      if (!in_place_) plane_ += ((last.i - first.i) * q.step_h + span_.height) * width_;
    }
    if (!in_place_) plane_ += kLanes<T>;  // the last row of a channel may be written a vector too far
  }

  /// Makes channels [channels) of group g of `in` (all of `in`) readable. NHWC images, with step_w 1 and `always`, are
  /// transposed on the way.
  void stage(const T* in, int64_t g, Range channels) {
    const int64_t image = q_.IH * q_.IW;
    source_ = in + (g * q_.CI + channels.begin) * image;
    if (in_place_) return;
    const int64_t C = q_.groups * q_.CI;
    for_each_part([&](int64_t n, int64_t top, int64_t bottom, int64_t at) {
      const int64_t begin = std::clamp<int64_t>(0, top, bottom), end = std::clamp(q_.IH, begin, bottom);
      if (q_.channels_last) {
        for (int64_t h = begin; h < end; ++h)
          stage_pixels(in + (n * q_.IH + h) * q_.IW * C + g * q_.CI + channels.begin, channels.size(),
                       stage_ + at + (h - top) * width_);
      }
      for (int64_t c = 0; c < channels.size(); ++c) {
        T* const to = stage_ + c * plane_ + at;
        zero((begin - top) * width_, to);
        if (!q_.channels_last) {
          for (int64_t h = begin; h < end; ++h)
            stage_row(source_ + (n * C + c) * image + h * q_.IW, to + (h - top) * width_);
        }
        zero((bottom - end) * width_, to + (end - top) * width_);
      }
    });
    source_ = stage_;
  }

  /// Writes tap t of staged channel c for all pixels. Unless the source is the image itself, writes up to a vector too
  /// far, so rows must be written in ascending order.
  DLK_INLINE void read(int64_t c, int64_t t, T* to) const {
    const T* from = source(c, t);
    for (int64_t r = 0; r < count_; ++r) copy_run(from + runs_[r].from, runs_[r].length, to + runs_[r].to);
  }

  /// Writes the panel of pixels [first, first + cut) of these taps of the staged channels: `cut` pixels per row, rows
  /// (c, t). Reaches up to a vector beyond the panel; what it writes for pixels that there are not is of no use.
  template <int cut>
  void read_panel(int64_t first, int64_t channels, Range taps, T* to) const {
    int64_t begin = 0;
    while (runs_[begin].to < first) ++begin;
    int64_t end = begin + 1;
    while (end < count_ && runs_[end].to < first + cut) ++end;
    int64_t offsets[Block<T>::KC];  // of the taps
    for (int64_t t = taps.begin; t < taps.end; ++t) offsets[t - taps.begin] = source(0, t) - source_;
    const auto for_each_row = [&](auto copy_row) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t t = 0; t < taps.size(); ++t, to += cut) copy_row(source_ + c * plane_ + offsets[t]);
    };
    if (runs_[begin].length == cut) {
      const int64_t at = runs_[begin].from;
      return for_each_row([&](const T* from) {
#pragma GCC unroll 8
        for (int l = 0; l < cut; l += kLanes<T>) store(to + l, load(from + at + l));
      });
    }
    // Padded rows are wide enough to read whole vectors: one that spans two runs joins two loads.
    Join joins[cut / kLanes<T>];
    if (!in_place_ && join_runs(first, begin, end, cut / kLanes<T>, joins))
      return for_each_row([&](const T* from) {
#pragma GCC unroll 8
        for (int v = 0; v < cut / kLanes<T>; ++v)
          store(to + v * kLanes<T>, joins[v].left ? load(from + joins[v].first) : load(from + joins[v].second));
      });
    for_each_row([&](const T* from) {
      for (int64_t r = begin; r < end; ++r) copy_run(from + runs_[r].from, runs_[r].length, to + runs_[r].to - first);
    });
  }

  /// What the panel after [first, first + cut) will read of the image, if rows of channels are all it takes: each
  /// channel lies in another page, more than the hardware looks ahead in.
  Ahead<T> after(int64_t first, int64_t cut) const {
    if (!in_place_ || q_.taps > 1) return {};
    int64_t r = count_ - 1;
    while (runs_[r].to > first + cut) --r;
    return {source(0, 0) + runs_[r].from + first + cut - runs_[r].to, plane_};
  }

  /// What tap t of staged channel c reads for pixel l of a run: source(c, t)[run.from + l].
  DLK_INLINE const T* source(int64_t c, int64_t t) const {
    const int64_t dw = q_.dw[t] - (in_place_ ? 0 : span_.left), dh = q_.dh[t] - (in_place_ ? 0 : span_.top);
    const int64_t column = q_.step_w == 1 ? dw : dw % q_.step_w * (width_ / q_.step_w) + dw / q_.step_w;
    return source_ + c * plane_ + dh * width_ + column;
  }
  /// Distance in the source from a grid row to the next of the same image.
  int64_t row_stride() const { return q_.step_h * width_; }
  /// The same from a whole image to the next, of staged ones.
  int64_t image_stride() const { return ((q_.rows - 1) * q_.step_h + span_.height) * width_; }

  const Run& run(int64_t r) const { return runs_[r]; }

 private:
  static bool in_place(const Correlation& q, const Span& span) { return q.step_w == 1 && span.inside(q); }
  static int64_t stage_width(const Correlation& q, const Span& span) {
    return round_up((q.cols - 1) * q.step_w + span.width, q.step_w);
  }

  DLK_INLINE void copy_run(const T* from, int64_t length, T* to) const {
    if (in_place_) return copy(from, length, to);
    for (int64_t l = 0; l < length; l += kLanes<T>) store(to + l, load(from + l));
  }

  /// A vector whose lanes come from source[first + lane] where `left` is set, else from source[second + lane].
  struct Join {
    int64_t first, second;
    Vec<IntOf<T>> left;
  };

  /// The vectors of a panel that starts at pixel `first` and consists of runs [begin, end); false if one of them spans
  /// more than two runs or the panel is not full.
  bool join_runs(int64_t first, int64_t begin, int64_t end, int64_t vectors, Join* joins) const {
    constexpr int64_t L = kLanes<T>;
    int64_t r = begin;
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = first + v * L;
      while (r < end && runs_[r].to + runs_[r].length <= at) ++r;
      if (r == end) return false;
      const int64_t n = runs_[r].to + runs_[r].length - at;  // lanes of the first of the two runs
      Join& join = joins[v];
      join.first = join.second = runs_[r].from + at - runs_[r].to;
      for (int64_t l = 0; l < L; ++l) join.left[l] = l < n ? -1 : 0;
      if (n >= L) continue;
      if (r + 1 == end || n + runs_[r + 1].length < L) return false;
      join.second = runs_[r + 1].from - n;
    }
    return true;
  }

  void add_run(int64_t to, int64_t from, int64_t length, int64_t cut) {
    while (length > 0) {
      const int64_t room = cut - to % cut, n = length < room ? length : room;
      Run* const last = count_ > 0 ? runs_ + count_ - 1 : nullptr;
      if (last && to % cut != 0 && last->to + last->length == to && last->from + last->length == from)
        last->length += n;
      else
        runs_[count_++] = {to, from, n};
      to += n, from += n, length -= n;
    }
  }

  /// f(image, rows [top, bottom) of it that are needed, where they go in the stage of a channel).
  template <class F>
  void for_each_part(F&& f) const {
    int64_t at = 0;
    for (int64_t p = pixels_.begin; p < pixels_.end;) {
      const Pixel first(q_, p);
      const int64_t image_end = (first.n + 1) * q_.rows * q_.cols;
      p = image_end < pixels_.end ? image_end : pixels_.end;
      const int64_t top = first.i * q_.step_h + span_.top;
      const int64_t bottom = Pixel(q_, p - 1).i * q_.step_h + span_.top + span_.height;
      f(first.n, top, bottom, at);
      at += (bottom - top) * width_;
    }
  }

  /// One NHWC input row with its padding, to a plane per channel.
  void stage_pixels(const T* from, int64_t channels, T* to) const {
    const int64_t C = q_.groups * q_.CI, left = span_.left;
    const auto [begin, end] = columns_inside(q_, left, width_);
    for (int64_t c = 0; c < channels; ++c) {
      zero(begin, to + c * plane_);
      zero(width_ - end, to + c * plane_ + end);
    }
    if (begin < end) store_transposed(from + (left + begin) * C, C, end - begin, channels, to + begin, plane_);
  }

  /// One input row with its padding. May write up to a vector too far: rows are staged in ascending order.
  void stage_row(const T* from, T* to) const {
    if (q_.step_w == 1) {
      constexpr int64_t L = kLanes<T>;
      const int64_t left = span_.left;
      const auto [begin, end] = columns_inside(q_, left, width_);
      for (int64_t w = 0; w < begin; w += L) store(to + w, Vec<T>{});
      int64_t w = begin;
      for (; w + L <= end; w += L) store(to + w, load(from + left + w));
      if (w < end) store(to + w, load_partial(from + left + w, end - w)), w += L;
      for (; w < width_; w += L) store(to + w, Vec<T>{});
      return;
    }
    const int64_t columns = width_ / q_.step_w, step = q_.step_w;
    for (int64_t phase = 0; phase < step; ++phase, to += columns) {
      const int64_t first = span_.left + phase;  // the input column of j = 0
      int64_t begin = first < 0 ? ceil_div(-first, step) : 0, end = first < q_.IW ? ceil_div(q_.IW - first, step) : 0;
      if (end > columns) end = columns;
      if (end <= begin) begin = end = columns;
      zero(begin, to);
      copy_every(step, from + first + begin * step, end - begin, to + begin);
      zero(columns - end, to + end);
    }
  }

  /// to[j] = from[j * step] for j < n. May write up to a vector too far.
  static void copy_every(int64_t step, const T* from, int64_t n, T* to) {
    constexpr int L = kLanes<T>;
    int64_t j = 0;
    if (step == 2) {
      for (; j + L < n; j += L)  // the second vector ends before from[2 n - 2]
        store(to + j, every_second<0>(load(from + 2 * j), load(from + 2 * j + L)));
      if (j == n) return;
      const int64_t left = 2 * (n - j) - 1;
      const Vec<T> first = load_partial(from + 2 * j, left < L ? left : L);
      return store(to + j, every_second<0>(first, left > L ? load_partial(from + 2 * j + L, left - L) : Vec<T>{}));
    }
    for (; j < n; ++j) to[j] = from[j * step];
  }

  const Correlation& q_;
  Span span_;
  bool in_place_;
  Range pixels_;
  Run* runs_;
  T* stage_;
  const T* source_ = nullptr;
  int64_t width_, plane_, count_ = 0;
};

// ---- NHWC: the channels of a pixel are contiguous.

/// Writes the patches of `pixels`, one row of `stride` elements each: taps in order, the channels [channels) of each.
/// Taps that read adjacent pixels are one copy where all channels are wanted: with few channels, this is most of the
/// gain.
template <class T>
void read_channels_last(const Correlation& q, const T* in, int64_t g, Range pixels, Range taps, Range channels, T* to,
                        int64_t stride) {
  const int64_t C = q.groups * q.CI, n = channels.size();
  in += g * q.CI + channels.begin;
  for (int64_t t = taps.begin, adjacent; t < taps.end; t += adjacent, to += adjacent * n) {
    adjacent = 1;
    while (n == C && t + adjacent < taps.end && q.dh[t + adjacent] == q.dh[t] &&
           q.dw[t + adjacent] == q.dw[t] + adjacent)
      ++adjacent;
    T* row = to;
    Pixel pixel(q, pixels.begin);
    for (int64_t p = pixels.begin; p < pixels.end; ++p, row += stride, pixel.next(q)) {
      const int64_t h = pixel.i * q.step_h + q.dh[t], w = pixel.j * q.step_w + q.dw[t];
      const T* from = in + ((pixel.n * q.IH + h) * q.IW + w) * C;
      if (h >= 0 && h < q.IH && w >= 0 && w + adjacent <= q.IW) {
        copy(from, adjacent * n, row);
        continue;
      }
      int64_t begin = w < 0 ? -w : 0, end = q.IW - w < adjacent ? q.IW - w : adjacent;
      if (h < 0 || h >= q.IH || end <= begin) begin = end = adjacent;
      zero(begin * n, row);
      if (begin < end) copy(from + begin * C, (end - begin) * n, row + begin * n);
      zero((adjacent - end) * n, row + end * n);
    }
  }
}

/// The input rows that a band of grid rows needs, so that tiles read patches where they lie, the channels of a pixel
/// beside each other: in the image (NHWC), or, if a tap could fall outside of it, in a copy padded with zeros; NCHW is
/// transposed into such a copy. A band may span images; pixels of a grid row are pixel_stride() apart and see term
/// (t, c) at the same offset.
template <class T>
class PixelRows {
 public:
  /// Elements of stage memory for a band of `rows` grid rows.
  static int64_t stage_elements(const Correlation& q, int64_t rows) {
    const Span span(q);
    if (in_place(q, span)) return 0;
    const int64_t images = ceil_div(rows, q.rows) + 1;
    return (rows * q.step_h + images * span.height) * stage_width(q, span) * staged_pixel(q);
  }

  /// Whether staging a band of `rows` grid rows copies less than packing its patches: not where taps are far apart or
  /// images tiny.
  static bool pays(const Correlation& q, int64_t rows) {
    return stage_elements(q, rows) <= q.taps * q.CI * rows * q.cols;
  }

  /// The band [rows), counted through all images, of group g of `in` (all of `in`). `starts`: room for a pointer per
  /// row.
  PixelRows(const Correlation& q, const T* in, int64_t g, Range rows, T* stage, const T** starts)
      : q_(q), span_(q), in_place_(in_place(q, span_)), starts_(starts) {
    const int64_t C = q.groups * q.CI, next_row = q.channels_last ? q.IW * C : q.IW;
    pixel_ = in_place_ ? C : staged_pixel(q);
    width_ = in_place_ ? q.IW : stage_width(q, span_);
    in += g * q.CI * (q.channels_last ? 1 : q.IH * q.IW);
    int64_t next = 0, first = 0;  // rows of the image: to be staged, and at `origin`
    T* origin = stage;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t n = r / q.rows, i = r % q.rows;
      const T* image = in + n * q.IH * q.IW * C;
      if (in_place_) {
        *starts++ = image + i * q.step_h * next_row;
        continue;
      }
      const int64_t top = i * q.step_h + span_.top, bottom = top + span_.height;
      if (i == 0 || r == rows.begin) {
        first = top;
        origin = stage;
        next = top;
      }
      if (next < top) next = top;  // rows that no tap reads
      for (; next < bottom; ++next) {
        T* const to = origin + (next - first) * width_ * pixel_;
        stage_row(next >= 0 && next < q.IH ? image + next * next_row : nullptr, to);
        stage = to + width_ * pixel_;
      }
      *starts++ = origin + (top - first) * width_ * pixel_;
    }
  }

  int64_t pixel_stride() const { return q_.step_w * pixel_; }

  /// The first pixel of the i-th row of the band.
  const T* row(int64_t i) const { return starts_[i]; }

  /// Where term (t, c) lies from a pixel on.
  int64_t offset(int64_t t, int64_t c) const {
    const int64_t dh = q_.dh[t] - (in_place_ ? 0 : span_.top), dw = q_.dw[t] - (in_place_ ? 0 : span_.left);
    return (dh * width_ + dw) * pixel_ + c;
  }

  /// The same for one block of the sum, in as few stretches as can be: at most one per tap.
  void stretches(Range taps, Range channels, Stretch* to) const {
    Stretch* const first = to;
    for (int64_t t = taps.begin; t < taps.end; ++t) {
      const int64_t at = offset(t, channels.begin);
      if (to > first && to[-1].offset + to[-1].terms == at)
        to[-1].terms += channels.size();
      else
        *to++ = {at, channels.size()};
    }
  }

 private:
  static bool in_place(const Correlation& q, const Span& span) { return q.channels_last && span.inside(q); }
  static int64_t stage_width(const Correlation& q, const Span& span) { return (q.cols - 1) * q.step_w + span.width; }
  /// From pixel to pixel of a copy; of a transposed one not a power of two, which would make pixels share cache sets.
  static int64_t staged_pixel(const Correlation& q) {
    return q.CI + (!q.channels_last && q.CI * sizeof(T) % 1024 == 0 ? kLanes<T> : 0);
  }

  /// One input row (null: zeros) with its padding.
  void stage_row(const T* from, T* to) const {
    const int64_t left = span_.left, C = q_.groups * q_.CI;
    const auto [begin, end] = from != nullptr ? columns_inside(q_, left, width_) : Range{width_, width_};
    zero(begin * pixel_, to);
    if (!q_.channels_last) {
      if (begin < end)
        store_transposed(from + left + begin, q_.IH * q_.IW, q_.CI, end - begin, to + begin * pixel_, pixel_);
    } else if (C == pixel_) {
      if (begin < end) copy(from + (left + begin) * C, (end - begin) * C, to + begin * C);
    } else {
      for (int64_t w = begin; w < end; ++w) copy(from + (left + w) * C, pixel_, to + w * pixel_);
    }
    zero((width_ - end) * pixel_, to + end * pixel_);
  }

  const Correlation& q_;
  Span span_;
  bool in_place_;
  const T** starts_;
  int64_t pixel_, width_;
};

// ---- Cutting the sum over (c, t) into blocks.

/// The order is (c, t) or (t, c): NCHW keeps all taps of a channel together (they read the same staged rows), NHWC the
/// channels of a tap.
template <class T>
struct SumBlocks {
  int64_t channels, taps;  // per block
  int64_t channel_blocks, tap_blocks;
  int64_t CI, all_taps;

  explicit SumBlocks(const Correlation& q, int64_t most = Block<T>::KC) : SumBlocks(q, most, q.channels_last) {}
  SumBlocks(const Correlation& q, int64_t most, bool channels_innermost) : CI(q.CI), all_taps(q.taps) {
    const auto fit = [](int64_t n, int64_t room) { return n < room ? n : room < 1 ? 1 : room; };
    if (channels_innermost) {
      channels = fit(CI, most);
      taps = fit(all_taps, most / channels);
    } else {
      taps = fit(all_taps, most);
      channels = fit(CI, most / taps);
    }
    channel_blocks = ceil_div(CI, channels);
    tap_blocks = ceil_div(all_taps, taps);
  }

  int64_t count() const { return channel_blocks * tap_blocks; }
  int64_t terms() const { return channels * taps; }
  Range channel_range(int64_t block) const { return block_range(block / tap_blocks, channels, CI); }
  Range tap_range(int64_t block) const { return block_range(block % tap_blocks, taps, all_taps); }
};

}  // namespace dlk::cpu::DLK_ISA
