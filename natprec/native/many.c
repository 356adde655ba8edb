/* The same operations for many tokens, one pass over memory each. */
#include "vectors.h"

/* y (tokens, columns) = weight * x over the root of its mean square, token by token. */
void natprec_norm(const float *x, long tokens, long columns, const float *weight, float eps, float *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long token = 0; token < tokens; token++) normed(x + token * columns, weight, columns, eps, y + token * columns);
}

/* x (tokens, …) with `heads` heads of `size` at the beginning of each row of `stride` floats, in place; cosine and sine
   (positions, size), of which token t has number t % positions. */
void natprec_rotate(float *x, long tokens, long stride, long heads, long size, const float *cosine, const float *sine,
                    long positions, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            const long at = token % positions * size;
            rotated(x + token * stride + head * size, cosine + at, sine + at, size);
        }
}

/* y (tokens, columns) = silu(gate) * up, whose rows are `stride` floats apart. */
void natprec_gate(const float *gate, const float *up, long tokens, long columns, long stride, float *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long token = 0; token < tokens; token++)
        gated(gate + token * stride, up + token * stride, columns, y + token * columns);
}
