/* Sums of products of vectors with themselves, x xᵀ, in bfloat16 with float32 sums: on and above the diagonal
   (natprec/quantizers/second_moments.py). An instruction multiplies pairs of neighbouring vectors. */
#ifdef __AVX512VNNI__
#include "bfloat16.h"

#include <omp.h>
#include <stdlib.h>

/* Pairs of vectors that meet at a time: so few that 64 columns of them stay in the nearest cache. */
enum { PAIRS = 128 };

/* `count` vectors, the columns from `first` on, as pairs: (pair, 64); zero beyond the last vector and the last column. */
ON_BFLOAT16 static void pack(const float *x, const long width, const long count, const long first, uint32_t *to) {
    for (long t = 0; t < count; t += 2)
        for (long i = 0; i < TILE_COLUMNS; i += LANES) {
            const long left = width - first - i;
            const __mmask16 real = left >= LANES ? 0xFFFF : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
            const float *from = x + t * width + first + i;
            const __m512 next = t + 1 < count ? _mm512_maskz_loadu_ps(real, from + width) : _mm512_setzero_ps();
            _mm512_storeu_si512(to + t / 2 * TILE_COLUMNS + i, paired(_mm512_maskz_loadu_ps(real, from), next));
        }
}

/* 64 columns of the sums, from `first` on, and their rows down to the diagonal; `own` (rows, 64) has room for them. */
ON_BFLOAT16 static void panel(const uint32_t *packed, const long pairs, const long first, float *own) {
    const uint32_t *columns = packed + first * pairs;
    const long rows = first + TILE_COLUMNS;
    for (long start = 0; start < pairs; start += PAIRS) {
        const long steps = pairs - start < PAIRS ? pairs - start : PAIRS;
        for (long row = 0; row < rows; row += TILE_ROWS) {
            const uint32_t *from[TILE_ROWS];
            __m512 sum[TILE_ROWS][WIDE];
#pragma GCC unroll 8
            for (int r = 0; r < TILE_ROWS; r++) { /* the last again where there are fewer */
                const long at = row + r < rows ? row + r : rows - 1;
                from[r] = packed + at / TILE_COLUMNS * TILE_COLUMNS * pairs + start * TILE_COLUMNS + at % TILE_COLUMNS;
#pragma GCC unroll 8
                for (int v = 0; v < WIDE; v++)
                    sum[r][v] = start ? _mm512_loadu_ps(own + (row + r) * TILE_COLUMNS + v * LANES) : _mm512_setzero_ps();
            }
            multiply(from, TILE_COLUMNS, columns + start * TILE_COLUMNS, steps, TILE_COLUMNS, LANES, WIDE, sum);
#pragma GCC unroll 8
            for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 8
                for (int v = 0; v < WIDE; v++) _mm512_storeu_ps(own + (row + r) * TILE_COLUMNS + v * LANES, sum[r][v]);
        }
    }
}

/* sums (width, width), of doubles or of floats, += Σ v vᵀ of x (count, width), on and above the diagonal; what else is in the
   last 64 columns of a row may be added to as well. 0 if there was no memory. */
ON_BFLOAT16 int natprec_moments(const float *x, long count, long width, void *sums, int doubles, int threads) {
    if (!count) return 1;
    const long pairs = (count + 1) / 2, panels = (width + TILE_COLUMNS - 1) / TILE_COLUMNS, across = panels * TILE_COLUMNS;
    uint32_t *packed = malloc(across * pairs * sizeof(uint32_t));
    float *room = malloc(threads * (across + TILE_ROWS) * TILE_COLUMNS * sizeof(float));
    if (packed && room) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (long at = 0; at < panels; at++)
            pack(x, width, count, at * TILE_COLUMNS, packed + at * TILE_COLUMNS * pairs);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
        for (long at = panels - 1; at >= 0; at--) { /* the longest first */
            float *own = room + omp_get_thread_num() * (across + TILE_ROWS) * TILE_COLUMNS;
            const long first = at * TILE_COLUMNS, rows = first + TILE_COLUMNS < width ? first + TILE_COLUMNS : width;
            const long some = width - first < TILE_COLUMNS ? width - first : TILE_COLUMNS;
            panel(packed, pairs, first, own);
            for (long row = 0; row < rows; row++) {
                const float *from = own + row * TILE_COLUMNS;
                if (doubles)
                    for (long i = 0; i < some; i++) ((double *)sums)[row * width + first + i] += from[i];
                else
                    for (long i = 0; i < some; i++) ((float *)sums)[row * width + first + i] += from[i];
            }
        }
    }
    const int enough = packed && room;
    free(packed), free(room);
    return enough;
}
#endif
