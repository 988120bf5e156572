// Convolution forward and gradient to the input, as correlations (correlation.h): by Winograd's algorithm
// (winograd.cpp) or directly (narrow_groups.cpp; correlate_few below) where those are faster, else by implicit GEMM.
//
// Pixels as rows: per group, out[pixels x CO] = Patches[pixels x (t, c)] W^T, for NHWC and for NCHW's larger sums,
// whose rows are transposed on the way in and tiles on the way out. Pixels as columns: out[CO x pixels] = W Patches,
// for the rest of NCHW. 1 x 1 filters over NHWC or large images are a product in memory (gemm.h). The weights are
// packed once, unless they lie well; then tasks (group, block of pixels, part of CO) run on the team of threads: each
// makes patches readable (patches.h), one block of the sum at a time, and multiplies. An element of out is summed by
// one thread, in an order that depends on the shape alone.
