/* Products with weights in planes of bits (natprec/runtime/kernels/planes.py has the layout), for CPUs with AVX2.

   Activations are rounded to whole numbers up to 32639 in each group of columns, with the group's own scale, so sums over
   a group are exact in int32 and their error is 2^-16 of the group's largest value: less than half of what bfloat16
   activations lose. rows_avx2.h and rows_avx512.h are two ways to the same sums; the compiler's flags choose. */
#include "vectors.h"

#include <stdlib.h>

enum { BLOCK = 32, LARGEST = 127 * 256 + 127, FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* A weight: `rows` of `blocks` blocks of 32 codes; sums are made whole over `unit` blocks, `per_scale` units have a scale. */
typedef struct {
    const uint8_t *planes;
    const void *scale;
    const int8_t *zero;
    long rows, blocks, unit, per_scale;
    int kind;
} weight_t;

/* Activations of one token: whole numbers in the order of a variant, for each unit their sum, and what one of them is worth. */
typedef struct {
    int16_t *codes;
    int32_t *sum;
    float *scale;
} activations_t;

INLINE float stored(const void *values, long index, int kind) {
    if (kind == FLOAT32) return ((const float *)values)[index];
    const uint16_t half = ((const uint16_t *)values)[index];
    if (kind == FLOAT16) return _cvtsh_ss(half);
    const uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* 32 unsigned codes, one to a byte, from the planes of one block. */
INLINE __m256i decode(const uint8_t *planes, const int bits) {
    if (bits == 8) return _mm256_loadu_si256((const __m256i *)planes);
    __m256i codes = _mm256_setzero_si256();
    int shift = 0;
    if (bits & 4) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)planes);
        codes = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
        codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
        planes += 16, shift = 4;
    }
    if (bits & 2) {
        int64_t word;
        memcpy(&word, planes, 8);
        __m256i two = _mm256_srlv_epi64(_mm256_set1_epi64x(word), _mm256_setr_epi64x(0, 2, 4, 6));
        two = _mm256_and_si256(two, _mm256_set1_epi8(3));
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(two, shift));
        planes += 8, shift += 2;
    }
    if (bits & 1) {
        int32_t word;
        memcpy(&word, planes, 4);
        __m256i one = _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        one = _mm256_and_si256(one, _mm256_set1_epi8(1));
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(one, shift));
    }
    return codes;
}

#ifdef __AVX512VNNI__
#include "rows_avx512.h"
#else
#include "rows_avx2.h"
#endif

/* The largest magnitude; floats without their sign are ordered as their bits are, and compilers vectorize whole numbers. */
INLINE float largest_of(const float *x, const long count) {
    int32_t pattern = 0;
    for (long i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= INT32_MAX;
        pattern = bits > pattern ? bits : pattern;
    }
    float largest;
    memcpy(&largest, &pattern, 4);
    return largest;
}

/* Activations as whole numbers, `step` columns with one scale; columns beyond the last are zeros. */
static void rounded(const float *x, const long columns, const long step, const weight_t w, const activations_t into) {
    for (long first = 0; first < w.blocks * BLOCK; first += step) {
        const long real = columns - first < step ? columns - first : step;
        const float largest = largest_of(x + first, real);
        const float inverse = largest > 0 ? LARGEST / largest : 0;
        for (long i = 0; i < real; i++) {
            const float value = x[first + i] * inverse;
            into.codes[first + i] = (int16_t)(int)(value + (value < 0 ? -0.5f : 0.5f));
        }
        memset(into.codes + first + real, 0, (step - real) * sizeof(int16_t));
        const long width = w.unit * BLOCK;
        for (long at = first; at < first + step; at += width) {
            int total = 0;
            for (long i = 0; i < width; i++) total += into.codes[at + i];
            into.sum[at / width] = total;
            into.scale[at / width] = largest / LARGEST;
        }
    }
    arrange(into.codes, w.blocks, w.unit);
}

/* One token. A loop for each width, with a literal for it, since compilers make functions of what they run in parallel. */
#define LOOP(bits, unit)                                                                                          \
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")                            \
    for (long row = 0; row < whole; row += ROWS) rows_of(w, bits, unit, ROWS, row, x, y + row);                   \
    for (long row = whole; row < w.rows; row++) rows_of(w, bits, unit, 1, row, x, y + row);
#define WIDTH(bits)                            \
    case bits:                                 \
        if (w.unit == 2) { LOOP(bits, 2) }     \
        else if (w.unit == 1) { LOOP(bits, 1) } \
        else { LOOP(bits, w.unit) }            \
        break;
static void all_rows(const weight_t w, const int bits, const activations_t x, float *y, const int threads) {
    const long whole = w.rows / ROWS * ROWS;
    switch (bits) { WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7) WIDTH(8) }
}

/* y (tokens, rows) = x (tokens, columns) times the weight, transposed; 0 if there was no memory. `step` columns share the
   rounding of activations, `per_scale` steps share a scale. */
int natprec_linear(const float *x, long tokens, long columns, const uint8_t *planes, const void *scale, int kind,
                   const int8_t *zero, int bits, long rows, long step, long per_scale, float *y, int threads) {
    const long steps = (columns + step - 1) / step, blocks = step / BLOCK, unit = unit_of(blocks), units = blocks / unit;
    const weight_t w = {planes, scale, zero, rows, steps * blocks, unit, per_scale * units, kind};
    const activations_t activations = {
        malloc(w.blocks * BLOCK * sizeof(int16_t)), malloc(steps * units * sizeof(int32_t)),
        malloc(steps * units * sizeof(float))};
    const int enough = activations.codes && activations.sum && activations.scale;
    if (!enough) tokens = 0;
    for (long token = 0; token < tokens; token++) {
        rounded(x + token * columns, columns, step, w, activations);
        all_rows(w, bits, activations, y + token * rows, threads);
    }
    free(activations.codes), free(activations.sum), free(activations.scale);
    return enough;
}

/* Rows `from` to `to` of the weight as floats, (to - from, columns). */
void natprec_values(const uint8_t *planes, const void *scale, int kind, const int8_t *zero, int bits, long from, long to,
                    long columns, long blocks, long group, float *y, int threads) {
    const long scales = (columns + group - 1) / group;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = from; row < to; row++) {
        uint8_t codes[BLOCK];
        for (long block = 0; block < blocks; block++) {
            const long first = block * BLOCK, width = columns - first < BLOCK ? columns - first : BLOCK;
            const long at = row * scales + first / group;
            const float factor = stored(scale, at, kind);
            const int middle = (1 << (bits - 1)) + (zero ? zero[at] : 0);
            _mm256_storeu_si256((__m256i *)codes, decode(planes + (row * blocks + block) * 4 * bits, bits));
            float *out = y + (row - from) * columns + first;
            for (long i = 0; i < width; i++) out[i] = (float)(codes[i] - middle) * factor;
        }
    }
}

/* y (tokens, rows) = x times a weight that is not quantized, bfloat16 or float16 (rows, columns). */
void natprec_half(const float *x, long tokens, long columns, const uint16_t *weight, int kind, long rows, float *y,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        ask_ahead(weight + row * columns, columns * 2);
        for (long token = 0; token < tokens; token++)
            y[token * rows + row] = half_dot(x + token * columns, weight + row * columns, columns, kind);
    }
}

/* Tokens as bytes of 128 plus a code of -127 to 127, and the scale of each, 1 where all is zero. */
void natprec_tokens(const float *x, long tokens, long columns, uint8_t *codes, float *scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long token = 0; token < tokens; token++) {
        const float *from = x + token * columns, largest = largest_of(from, columns);
        const float step = largest > 0 ? largest / 127 : 1;
        for (long i = 0; i < columns; i++) { /* adding 1.5 * 2^23 rounds half to even */
            const float rounded = (from[i] / step + 12582912.0f) - 12582912.0f;
            codes[token * columns + i] = (uint8_t)((int)rounded + 128);
        }
        scale[token] = step;
    }
}
