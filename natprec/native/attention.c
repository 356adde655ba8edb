/* Causal attention of many tokens in bfloat16 with float32 sums, for CPUs that multiply bfloat16 (AVX512_BF16).

   Six queries meet 64 keys at a time in 24 registers, and their shares then the values likewise. An instruction
   multiplies pairs, so keys are packed as pairs of neighbouring components, 16 keys side by side, and values as pairs of
   neighbouring tokens. Scores of six queries fit into the nearest cache, so each row's largest is known before any power. */
#ifdef __AVX512VNNI__
#include "bfloat16.h"

#include <stdlib.h>

enum { QUERIES = TILE_ROWS, KEYS = TILE_COLUMNS };

/* Rows of `size` floats, `stride` apart, as pairs of components: (key / 16, size / 2, 16). */
ON_BFLOAT16 static void pack_keys(const float *from, const long stride, const long tokens, const long size, uint32_t *to) {
    uint32_t row[size / 2];
    for (long t = 0; t < tokens; t++) {
        for (long i = 0; i < size; i += LANES)
            _mm256_storeu_si256((__m256i *)(row + i / 2), narrow(_mm512_loadu_ps(from + t * stride + i)));
        uint32_t *place = to + t / LANES * LANES * (size / 2) + t % LANES;
        for (long i = 0; i < size / 2; i++) place[i * LANES] = row[i];
    }
}

/* The same as pairs of tokens: (token / 2, size); a token beyond the last is zero. */
ON_BFLOAT16 static void pack_values(const float *from, const long stride, const long tokens, const long size, uint32_t *to) {
    for (long t = 0; t < tokens; t += 2)
        for (long i = 0; i < size; i += LANES) {
            const __m512 next = t + 1 < tokens ? _mm512_loadu_ps(from + (t + 1) * stride + i) : _mm512_setzero_ps();
            _mm512_storeu_si512(to + t / 2 * size + i, paired(_mm512_loadu_ps(from + t * stride + i), next));
        }
}

INLINE __m512 powers_of_two(const __m512 t) {
    const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(t, whole);
    __m512 value = _mm512_set1_ps(1.3333558e-3f);
    value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(9.6181291e-3f));
    value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(5.5504109e-2f));
    value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(2.4022651e-1f));
    value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(6.9314718e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(value, f, _mm512_set1_ps(1.0f)), whole);
}

/* Scores of a row to shares times their sum, in bfloat16; `limit` keys count, up to `width` shares are zero. */
ALWAYS float shares(const float *scores, const long limit, const long width, uint16_t *to) {
    __m512 largest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (long t = 0; t < limit; t += LANES) {
        const __mmask16 real = limit - t < LANES ? (__mmask16)((1 << (limit - t)) - 1) : 0xFFFF;
        largest = _mm512_mask_max_ps(largest, real, largest, _mm512_loadu_ps(scores + t));
    }
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    long t = 0;
    for (; t < limit; t += LANES) {
        const __mmask16 real = limit - t < LANES ? (__mmask16)((1 << (limit - t)) - 1) : 0xFFFF;
        const __m512 share = _mm512_maskz_mov_ps(real, powers_of_two(_mm512_sub_ps(_mm512_loadu_ps(scores + t), largest)));
        total = _mm512_add_ps(total, share);
        _mm256_storeu_si256((__m256i *)(to + t), narrow(share));
    }
    if (t < width) memset(to + t, 0, (width - t) * sizeof(uint16_t));
    return _mm512_reduce_add_ps(total);
}

/* Up to six queries of one head, the first at place `first`; queries and y by rows. */
ON_BFLOAT16 static void tile(const float *query, const long stride, const long first, const long count, const uint32_t *keys,
                             const uint32_t *values, const long size, const float factor, float *y, const long y_stride) {
    const long width = (first + count + KEYS - 1) / KEYS * KEYS, half = size / 2;
    uint32_t narrowed[QUERIES][half];
    float scores[QUERIES][width];
    uint16_t chances[QUERIES][width];
    float total[QUERIES];
    const uint32_t *rows[QUERIES];
    __m512 sum[QUERIES][WIDE];
    for (int r = 0; r < QUERIES; r++) {
        const float *from = query + (r < count ? r : count - 1) * stride; /* the last again where there are fewer */
        for (long i = 0; i < size; i += LANES)
            _mm256_storeu_si256((__m256i *)(narrowed[r] + i / 2),
                                narrow(_mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(factor))));
        rows[r] = narrowed[r];
    }
    for (long key = 0; key < width; key += KEYS) {
        clear(sum, WIDE);
        multiply(rows, 1, keys + key * half, half, LANES, LANES * half, WIDE, sum);
#pragma GCC unroll 8
        for (int r = 0; r < QUERIES; r++)
#pragma GCC unroll 8
            for (int v = 0; v < WIDE; v++) _mm512_storeu_ps(scores[r] + key + v * LANES, sum[r][v]);
    }
    for (int r = 0; r < QUERIES; r++) {
        total[r] = shares(scores[r], first + (r < count ? r : count - 1) + 1, width, chances[r]);
        rows[r] = (const uint32_t *)chances[r];
    }
    const long pairs = (first + count + 1) / 2;
    for (long i = 0; i < size;) {
        const int wide = size - i >= KEYS ? WIDE : 1;
        clear(sum, wide);
        if (wide == WIDE) multiply(rows, 1, values + i, pairs, size, LANES, WIDE, sum);
        else multiply(rows, 1, values + i, pairs, size, LANES, 1, sum);
        for (int r = 0; r < count; r++)
            for (int v = 0; v < wide; v++)
                _mm512_storeu_ps(y + r * y_stride + i + v * LANES, _mm512_div_ps(sum[r][v], _mm512_set1_ps(total[r])));
        i += wide * LANES;
    }
}

/* y (tokens, heads, size). Query, key and value of one sequence, each with a step in floats from token to token and from
   head to head; size is a multiple of 16. 0 if there was no memory. */
int natprec_attention(const float *query, long query_token, long query_head, const float *key, long key_token, long key_head,
                      const float *value, long value_token, long value_head, long tokens, long heads, long key_heads,
                      long size, float scaling, float *y, int threads) {
    const long padded = (tokens + KEYS - 1) / KEYS * KEYS, words = padded * size / 2, tiles = (tokens + QUERIES - 1) / QUERIES;
    uint32_t *packed = calloc(2 * words * key_heads, sizeof(uint32_t));
    if (!packed) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long head = 0; head < key_heads; head++) {
        uint32_t *to = packed + 2 * words * head;
        pack_keys(key + head * key_head, key_token, tokens, size, to);
        pack_values(value + head * value_head, value_token, tokens, size, to + words);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8) if (threads > 1)
    for (long part = 0; part < heads * tiles; part++) {
        const long head = part / tiles, first = part % tiles * QUERIES;
        const long count = tokens - first < QUERIES ? tokens - first : QUERIES;
        const uint32_t *keys = packed + 2 * words * (head / (heads / key_heads));
        tile(query + head * query_head + first * query_token, query_token, first, count, keys, keys + words, size,
             scaling * LOG2_E, y + (first * heads + head) * size, heads * size);
    }
    free(packed);
    return 1;
}
#endif
