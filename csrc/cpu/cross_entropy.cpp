// Cross-entropy over C of x (N, C, inner), contiguous; one loss per position (n, i) of (N, inner).
//
// With l_c = (x_c - m) - log sum_k exp(x_k - m), m = max_k x_k, the log-probability of class c (l_c = x_c if x holds
// log-probabilities already), e the label smoothing and w the class weights:
//     loss = -sum_c a_c l_c         a_c = w_c ((1 - e) t_c + e / C),  t_c = 1 for the target class or its probability
//     dx_c = dloss (A p_c - a_c)    A = sum_c a_c,  p_c = exp(l_c)
// For log-probabilities, which come with indices and no smoothing only, dx_c = -dloss a_c.
// The probabilities are never stored: backward recomputes them from x and two numbers per position, m and the log of
// the sum. They are kept apart because their sum would lose the digits that matter where m is large.
//
// For class indices the one term of the target is picked and the rest, needed only with label smoothing, is the
// "dense" part. A thread computes whole rows, or tiles of columns where inner > 1 (softmax_passes.h); of
// log-probabilities, whose gradient is zeros but for one element per position, blocks of positions. Indices must have
// passed check().
#include "csrc/core/cross_entropy.h"

#include <cstring>

#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/reduce.h"
#include "csrc/cpu/softmax_passes.h"

namespace dlk::cpu {
namespace {

/// The coefficients a_c of one call, split into picked and dense: a_c = picked [c = target] + dense_c, with picked = (1
/// - e) w_c for indices, and dense_c the rest.
template <class T>
struct Coefficients {
  using V = Vec<T>;
  CrossEntropyTargets<T> targets;
  T sharp;               // 1 - e
  T uniform[kLanes<T>];  // e / C; an array, so that load_n gives 0 beyond the end of a row
  bool has_dense;

  Coefficients(const CrossEntropyParams& p, const CrossEntropyTargets<T>& targets)
      : targets(targets),
        sharp(static_cast<T>(1 - p.label_smoothing)),
        has_dense(targets.probability != nullptr || p.label_smoothing > 0) {
    for (T& u : uniform) u = static_cast<T>(p.label_smoothing / static_cast<double>(p.C));
  }

  T weight(int64_t c) const { return targets.weight ? targets.weight[c] : T(1); }

  /// The dense part for classes c, c + 1, ... of the row that starts at `row`.
  template <class Count>
  DLK_INLINE V along_row(int64_t row, int64_t c, Count lanes) const {
    V a = load_n(uniform, lanes);
    if (targets.probability) a += load_n(targets.probability + row + c, lanes) * sharp;
    return targets.weight ? a * load_n(targets.weight + c, lanes) : a;
  }

  /// The dense part of class c for the positions that start at element `at`.
  template <class Count>
  DLK_INLINE V along_columns(int64_t at, int64_t c, Count lanes) const {
    V a = load_n(uniform, lanes);
    if (targets.probability) a += load_n(targets.probability + at, lanes) * sharp;
    return a * weight(c);
  }
};

template <class T>
bool check(const CrossEntropyParams& p, const CrossEntropyTargets<T>& targets, double* total, int64_t* bad, Context&) {
  *total = targets.index ? 0 : static_cast<double>(p.N * p.inner);
  if (!targets.index) return true;
  // This pass has no branches, so that the compiler vectorizes it; which index is bad matters only if one is.
  const int64_t n = p.N * p.inner, ignored = p.ignore_index;
  const uint64_t C = static_cast<uint64_t>(p.C);
  int64_t count = 0, wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = targets.index[i];
    count += t != ignored;
    wrong += (t != ignored) & (static_cast<uint64_t>(t) >= C);
  }
  for (int64_t i = 0; i < n && wrong > 0; ++i) {
    *bad = targets.index[i];
    if (*bad != ignored && static_cast<uint64_t>(*bad) >= C) return false;
  }
  *total = static_cast<double>(count);
  if (targets.weight) {
    *total = 0;
    for (int64_t i = 0; i < n; ++i)
      if (targets.index[i] != ignored) *total += targets.weight[targets.index[i]];
  }
  return true;
}

/// The loss of position i, whose logits start at x and are `inner` apart, given the dense part of its sum.
template <class T>
T finish(const CrossEntropyParams& p, const Coefficients<T>& a, int64_t i, const T* x, T m, T log_sum, T dense) {
  if (a.targets.index == nullptr) return dense;
  const int64_t t = a.targets.index[i];
  if (t == p.ignore_index) return 0;
  return dense + a.sharp * a.weight(t) * ((m - x[t * p.inner]) + log_sum);
}

/// `rows` rows from i on, up to kLanes short ones.
template <class T>
void forward_rows(const CrossEntropyParams& p, const T* x, const Coefficients<T>& a, int64_t i, int64_t rows,
                  T* maximum, T* log_sum, T* loss) {
  const auto take = [&](int64_t r, T m, T log) {
    const int64_t at = i + r;
    const T* const row = x + at * p.C;
    T dense = 0;
    if (a.has_dense) {
      Vec<T> sums = {};
      for_each_vec<T>(p.C, [&](int64_t c, auto lanes) {
        sums += a.along_row(at * p.C, c, lanes) * ((m - load_n(row + c, lanes)) + log);
      });
      dense = reduce_sum(sums);
    }
    maximum[at] = m;
    log_sum[at] = log;
    loss[at] = finish(p, a, at, row, m, log, dense);
  };
  const auto ignore = [](auto...) {};
  if (p.C > kMostShort) {
    const auto done = [&](int64_t r, T m, T sum) { take(r, m, std::log(sum)); };
    return long_rows_max_sum(p.C, rows, x + i * p.C, ignore, done, ignore);
  }
  T m[kLanes<T>], log[kLanes<T>] = {};
  rows_max_sum(p.C, rows, x + i * p.C, m, log, ignore);
  take_logs(rows, log);
  for (int64_t r = 0; r < rows; ++r) take(r, m[r], log[r]);
}

template <class T>
void forward_tile(const CrossEntropyParams& p, const T* x, const Coefficients<T>& a, int64_t n, int64_t j0,
                  int64_t width, T* maximum, T* log_sum, T* loss) {
  const int64_t start = n * p.C * p.inner + j0, i = n * p.inner + j0;
  T m[kTile] = {}, log[kTile] = {}, dense[kTile] = {};
  tile_max_sum(p.C, p.inner, width, x + start, m, log, [](auto...) {});
  take_logs(width, log);
  for (int64_t c = 0; c < p.C && a.has_dense; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const int64_t at = start + c * p.inner + j;
      const Vec<T> loss_c = (load(m + j) - load_n(x + at, lanes)) + load(log + j);
      store(dense + j, load(dense + j) + a.along_columns(at, c, lanes) * loss_c);
    });
  for (int64_t j = 0; j < width; ++j) {
    maximum[i + j] = m[j];
    log_sum[i + j] = log[j];
    loss[i + j] = finish(p, a, i + j, x + start + j, m[j], log[j], dense[j]);
  }
}

/// loss[i - begin] of positions [begin, end): negative log-likelihood without smoothing, for which one element of each
/// position is read.
template <class T>
void pick(const CrossEntropyParams& p, const T* x, const Coefficients<T>& a, int64_t begin, int64_t end, T* loss) {
  int64_t n = begin / p.inner, j = begin % p.inner;
  for (int64_t i = begin; i < end; ++i) {
    *loss++ = finish(p, a, i, x + n * p.C * p.inner + j, T(0), T(0), T(0));
    if (++j == p.inner) j = 0, ++n;
  }
}

/// The same for all positions: their sum if `sum` is not null, else each.
template <class T>
void forward_picked(const CrossEntropyParams& p, const T* x, const Coefficients<T>& a, T* loss, double* sum,
                    Context& context) {
  constexpr int64_t kMissCost = 16;  // a load from memory, in elements of streaming work
  const int64_t positions = p.N * p.inner;
  if (sum == nullptr)
    return parallel_for(positions, kMissCost,
                        [&](int64_t begin, int64_t end) { pick(p, x, a, begin, end, loss + begin); });
  *sum = sum_blocks<double>(positions, kMissCost, context, [&](int64_t begin, int64_t end) {
    T losses[kSumBlock];
    pick(p, x, a, begin, end, losses);
    return sum_in_double(end - begin, losses);
  });
}

template <class T>
void forward(const CrossEntropyParams& p, const T* x, const CrossEntropyTargets<T>& targets, T* maximum, T* log_sum,
             T* loss, const double* divisor, T* reduced, Context& context) {
  const Coefficients<T> a(p, targets);
  double total = 0;
  if (!p.logits) {
    forward_picked(p, x, a, loss, reduced ? &total : nullptr, context);
  } else {
    for_each_row_or_tile<T>(
        {p.N, p.C, p.inner}, [&](int64_t i, int64_t count) { forward_rows(p, x, a, i, count, maximum, log_sum, loss); },
        [&](int64_t n, int64_t j, int64_t width) { forward_tile(p, x, a, n, j, width, maximum, log_sum, loss); });
    // In double, since losses may have either sign and cancel: they are few next to the elements of x.
    if (reduced)
      total = sum_blocks<double>(p.N * p.inner, 1, context,
                                 [=](int64_t begin, int64_t end) { return sum_in_double(end - begin, loss + begin); });
  }
  if (reduced) *reduced = static_cast<T>(divisor ? total / *divisor : total);
}

/// The gradient of a position: its dloss, and A split as Coefficients are.
template <class T>
struct Position {
  T dloss;
  int64_t target;  // -1: ignored, or probabilities
  T picked;        // the picked part of A
};

template <class T>
Position<T> position(const CrossEntropyParams& p, const Coefficients<T>& a, int64_t i, T dloss) {
  if (a.targets.index == nullptr) return {dloss, -1, 0};
  const int64_t t = a.targets.index[i];
  if (t == p.ignore_index) return {0, -1, 0};
  return {dloss, t, a.sharp * a.weight(t)};
}

/// dense: whether a has a dense part.
template <bool dense, class T>
void backward_row(const CrossEntropyParams& p, const T* x, const Coefficients<T>& a, int64_t i, T m, T log_sum, T dloss,
                  T* dx) {
  using V = Vec<T>;
  const int64_t row = i * p.C;
  const Position<T> here = position(p, a, i, dloss);
  V sums = {};
  if (dense) for_each_vec<T>(p.C, [&](int64_t c, auto lanes) { sums += a.along_row(row, c, lanes); });
  const T A = here.picked + reduce_sum(sums);
  for_each_vec<T>(p.C, [&](int64_t c, auto lanes) {
    V g = exp_or_zero((read_n(x + row + c, lanes) - m) - log_sum) * A;
    if constexpr (dense) g -= a.along_row(row, c, lanes);
    store_n(dx + row + c, g * here.dloss, lanes);
  });
  if (here.target >= 0) dx[row + here.target] -= here.dloss * here.picked;
}

template <bool dense, class T>
void backward_tile(const CrossEntropyParams& p, const T* x, const Coefficients<T>& a, int64_t n, int64_t j0,
                   int64_t width, const T* maximum, const T* log_sum, const T* dloss, int64_t step, T scale, T* dx) {
  using V = Vec<T>;
  const int64_t start = n * p.C * p.inner + j0, i = n * p.inner + j0;
  Position<T> here[kTile];
  T g[kTile] = {}, A[kTile] = {}, m[kTile] = {}, log[kTile] = {};
  for (int64_t j = 0; j < width; ++j) {
    here[j] = position(p, a, i + j, dloss[(i + j) * step] * scale);
    g[j] = here[j].dloss;
    A[j] = here[j].picked;
    m[j] = maximum[i + j];
    log[j] = log_sum[i + j];
  }
  for (int64_t c = 0; c < p.C && dense; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      store(A + j, load(A + j) + a.along_columns(start + c * p.inner + j, c, lanes));
    });
  for (int64_t c = 0; c < p.C; ++c)
    for_each_vec<T>(width, [&](int64_t j, auto lanes) {
      const int64_t at = start + c * p.inner + j;
      fetch_ahead(x + at + p.inner);  // the next row of the tile: the one pass there is reads from beyond L2
      V d = exp_or_zero((load_n(x + at, lanes) - load(m + j)) - load(log + j)) * load(A + j);
      if constexpr (dense) d -= a.along_columns(at, c, lanes);
      store_n(dx + at, d * load(g + j), lanes);
    });
  for (int64_t j = 0; j < width; ++j)
    if (here[j].target >= 0) dx[start + here[j].target * p.inner + j] -= g[j] * here[j].picked;
}

/// Of log-probabilities: zeros, and one element per position. memset is the fastest way to write zeros: it need not
/// read the lines before.
template <class T>
void backward_picked(const CrossEntropyParams& p, const Coefficients<T>& a, const T* dloss, int64_t step, T scale,
                     T* dx) {
  constexpr int64_t kBlock = 16 << 10;  // elements
  const int64_t size = p.N * p.C * p.inner, positions = p.N * p.inner;
  run_team(size >= 2 * kGrainElements, [&](const Team& team) {
    team.for_each(ceil_div(size, kBlock), [&](int64_t block) {
      const int64_t begin = block * kBlock, n = std::min(kBlock, size - begin);
      std::memset(dx + begin, 0, n * sizeof(T));
    });
    team.for_each(ceil_div(positions, kSumBlock), [&](int64_t block) {
      const int64_t begin = block * kSumBlock, end = std::min(positions, begin + kSumBlock);
      int64_t n = begin / p.inner, j = begin % p.inner;
      for (int64_t i = begin; i < end; ++i) {
        const Position<T> here = position(p, a, i, dloss[i * step] * scale);
        if (here.target >= 0) dx[(n * p.C + here.target) * p.inner + j] = T(0) - here.dloss * here.picked;
        if (++j == p.inner) j = 0, ++n;
      }
    });
  });
}

template <class T>
void backward(const CrossEntropyParams& p, const T* x, const CrossEntropyTargets<T>& targets, const T* maximum,
              const T* log_sum, const T* dloss, int64_t step, const double* divisor, T* dx, Context&) {
  const Coefficients<T> a(p, targets);
  const T s = static_cast<T>(divisor ? 1 / *divisor : 1);
  if (!p.logits) return backward_picked(p, a, dloss, step, s, dx);
  const auto run = [&](auto dense) {
    for_each_row_or_tile<T>(
        {p.N, p.C, p.inner},
        [&](int64_t begin, int64_t count) {
          for (int64_t i = begin; i < begin + count; ++i)
            backward_row<dense>(p, x, a, i, maximum[i], log_sum[i], dloss[i * step] * s, dx);
        },
        [&](int64_t n, int64_t j, int64_t width) {
          backward_tile<dense>(p, x, a, n, j, width, maximum, log_sum, dloss, step, s, dx);
        });
  };
  a.has_dense ? run(std::true_type{}) : run(std::false_type{});
}

}  // namespace
}  // namespace dlk::cpu

DLK_KERNEL_TABLE(CrossEntropyKernels<float>, {check<float>, forward<float>, backward<float>})
DLK_KERNEL_TABLE(CrossEntropyKernels<double>, {check<double>, forward<double>, backward<double>})
