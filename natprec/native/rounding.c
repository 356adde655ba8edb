/* Rounding on a grid that is known: to nearest (natprec/quantizers/integer.py), and column by column, each column's error pushed
   onto the next ones (natprec/quantizers/gptq.py). */
#include "vectors.h"

enum { TILE = 64 };

typedef struct {
    long rows, stride;
    const float *factor;
    long across;
} order_t;

/* `count` rows of the weight, which are neighbours in memory, through all columns of a block: they stay in the cache. */
INLINE void rounded(float *work, const order_t o, const long columns, const float *scale, const float *offset,
                    const float *low, const float *high, int8_t *codes, float *errors, const long count) {
    for (long i = 0; i < columns; i++) {
        float left[TILE];
        const float pivot = o.factor[i * o.across + i];
        float *own = work + i * o.stride;
#pragma omp simd
        for (long r = 0; r < count; r++) left[r] = own[r];
        for (long k = 0; k < i; k++) {
            const float push = o.factor[k * o.across + i];
            const float *error = errors + k * o.rows;
#pragma omp simd
            for (long r = 0; r < count; r++) left[r] -= push * error[r];
        }
#pragma omp simd
        for (long r = 0; r < count; r++) {
            const long at = i * o.rows + r;
            float code = nearbyintf((left[r] - offset[at]) / scale[at]);
            code = code < low[r] ? low[r] : code;
            code = code > high[r] ? high[r] : code;
            const float value = code * scale[at] + offset[at];
            codes[at] = (int8_t)code;
            errors[at] = (left[r] - value) / pivot;
            own[r] = value;
        }
    }
}

/* work (columns, rows), its columns `stride` floats apart, becomes its rounded values; codes and errors (columns, rows).

   factor (columns, columns), rows `across` floats apart: what error k is multiplied by before column i > k loses it, and on the
   diagonal what a column's error is divided by. scale and offset (columns, rows), low and high (rows): the grid. */
void natprec_columns(float *work, long stride, long columns, long rows, const float *factor, long across, const float *scale,
                     const float *offset, const float *low, const float *high, int8_t *codes, float *errors, int threads) {
    const order_t order = {rows, stride, factor, across};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long first = 0; first < rows; first += TILE) {
        const long count = rows - first;
        if (count >= TILE)
            rounded(work + first, order, columns, scale + first, offset + first, low + first, high + first, codes + first,
                    errors + first, TILE);
        else
            rounded(work + first, order, columns, scale + first, offset + first, low + first, high + first, codes + first,
                    errors + first, count);
    }
}

/* errors = value - weight of the nearest value on each group's grid; weight and errors (groups, size), scale and offset (groups);
   offset may be NULL. */
void natprec_errors(const float *weight, long groups, long size, const float *scale, const float *offset, float low, float high,
                    float *errors, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long group = 0; group < groups; group++) {
        const float step = scale[group], from = offset ? offset[group] : 0.0f;
        const float *own = weight + group * size;
        float *error = errors + group * size;
#pragma omp simd
        for (long i = 0; i < size; i++) {
            float code = nearbyintf((own[i] - from) / step);
            code = code < low ? low : code;
            code = code > high ? high : code;
            error[i] = code * step + from - own[i];
        }
    }
}
