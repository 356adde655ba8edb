/* Products of pairs of bfloat16 with float32 sums (AVX512_BF16): a tile of six rows by 64 columns stays in 24 registers. */
#include "vectors.h"

enum { TILE_ROWS = 6, WIDE = 4, LANES = 16, TILE_COLUMNS = WIDE * LANES };
#define ON_BFLOAT16 __attribute__((target("avx512bf16")))
#define ALWAYS static inline __attribute__((always_inline, target("avx512bf16")))

ALWAYS __m256i narrow(const __m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

/* 16 pairs: the first one's values are the low halves. */
ALWAYS __m512i paired(const __m512 first, const __m512 second) {
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(second)), 16);
    return _mm512_or_si512(_mm512_cvtepu16_epi32(narrow(first)), high);
}

ALWAYS void clear(__m512 sum[TILE_ROWS][WIDE], const int wide) {
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < wide; v++) sum[r][v] = _mm512_setzero_ps();
}

/* sum[r][v] += pairs of row r times registers v of each step: `steps` of them. A row's pairs are `between` apart; `right` goes on
   by `step` words from step to step, and its registers are `apart` words apart. */
ALWAYS void multiply(const uint32_t *const rows[TILE_ROWS], const long between, const uint32_t *right, const long steps,
                     const long step, const long apart, const int wide, __m512 sum[TILE_ROWS][WIDE]) {
    for (long s = 0; s < steps; s++, right += step) {
        __m512bh values[WIDE];
#pragma GCC unroll 8
        for (int v = 0; v < wide; v++) values[v] = (__m512bh)_mm512_loadu_si512(right + v * apart);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32((int)rows[r][s * between]);
#pragma GCC unroll 8
            for (int v = 0; v < wide; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], pair, values[v]);
        }
    }
}
