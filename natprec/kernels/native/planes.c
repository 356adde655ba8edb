/* Products with weights in planes of bits (natprec/kernels/planes.py has the layout), for CPUs with AVX2.

   Activations are rounded to int16 in each group of columns, with the group's own scale, so sums over a group are exact
   in int32 and their error is 2^-16 of the group's largest value: less than half of what bfloat16 activations lose. */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
enum { BLOCK = 32, FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

INLINE float stored(const void *values, long index, int kind) {
    if (kind == FLOAT32) return ((const float *)values)[index];
    const uint16_t half = ((const uint16_t *)values)[index];
    if (kind == FLOAT16) return _cvtsh_ss(half);
    const uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

INLINE float sum(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
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

/* acc + codes * x, 32 of them, in eight int32. */
INLINE __m256i dot(__m256i acc, __m256i codes, const int16_t *x) {
    const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes));
    const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(codes, 1));
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(low, _mm256_loadu_si256((const __m256i *)x)));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(high, _mm256_loadu_si256((const __m256i *)(x + 16))));
}

/* A weight: `rows` of `steps` groups of activations, `blocks` blocks of 32 codes in each; `per_scale` steps to a scale. */
typedef struct {
    const uint8_t *planes;
    const void *scale;
    const int8_t *zero;
    long rows, steps, blocks, per_scale;
    int kind;
} weight_t;

INLINE void rows_of(const weight_t w, const int bits, const long blocks, const int16_t *x, const float *x_scale,
                    const int *x_sum, float *y, const int threads) {
    const long bytes = w.steps * blocks * 4 * bits, scales = w.steps / w.per_scale;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < w.rows; row++) {
        const uint8_t *planes = w.planes + row * bytes;
        __m256 total = _mm256_setzero_ps();
        for (long step = 0; step < w.steps; step++) {
            const long at = row * scales + (w.per_scale == 1 ? step : step / w.per_scale);
            const int middle = (1 << (bits - 1)) + (w.zero ? w.zero[at] : 0);
            __m256i acc = _mm256_zextsi128_si256(_mm_cvtsi32_si128(-middle * x_sum[step]));
            for (long block = 0; block < blocks; block++, planes += 4 * bits)
                acc = dot(acc, decode(planes, bits), x + (step * blocks + block) * BLOCK);
            const __m256 scale = _mm256_set1_ps(stored(w.scale, at, w.kind) * x_scale[step]);
            total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), scale, total);
        }
        y[row] = sum(total);
    }
}

#define WIDTH(b)                                                                     \
    case b:                                                                          \
        if (w.blocks == 2) rows_of(w, b, 2, codes, x_scale, x_sum, out, threads);    \
        else rows_of(w, b, w.blocks, codes, x_scale, x_sum, out, threads);           \
        break;

/* y (tokens, rows) = x (tokens, columns) times the weight, transposed; 0 if there was no memory. */
int natprec_linear(const float *x, long tokens, long columns, const uint8_t *planes, const void *scale, int kind,
                   const int8_t *zero, int bits, long rows, long step, long per_scale, float *y, int threads) {
    const long steps = (columns + step - 1) / step;
    const weight_t w = {planes, scale, zero, rows, steps, step / BLOCK, per_scale, kind};
    int16_t *codes = malloc(steps * step * sizeof(int16_t));
    float *x_scale = malloc(steps * sizeof(float));
    int *x_sum = malloc(steps * sizeof(int));
    const int enough = codes && x_scale && x_sum;
    if (!enough) tokens = 0;
    for (long token = 0; token < tokens; token++) {
        const float *from = x + token * columns;
        float *out = y + token * rows;
        for (long s = 0; s < steps; s++) {
            const long first = s * step, width = columns - first < step ? columns - first : step;
            float largest = 0;
            for (long i = 0; i < width; i++) {
                const float size = __builtin_fabsf(from[first + i]);
                largest = size > largest ? size : largest;
            }
            const float inverse = largest > 0 ? 32767.0f / largest : 0;
            int total = 0;
            for (long i = 0; i < width; i++) {
                const float value = from[first + i] * inverse;
                const int code = (int)(value + (value < 0 ? -0.5f : 0.5f));
                codes[first + i] = (int16_t)code;
                total += code;
            }
            memset(codes + first + width, 0, (step - width) * sizeof(int16_t));
            x_scale[s] = largest / 32767.0f;
            x_sum[s] = total;
        }
        switch (bits) { WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7) WIDTH(8) }
    }
    free(codes), free(x_scale), free(x_sum);
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
    const long whole = columns / 8 * 8;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        const uint16_t *w = weight + row * columns;
        for (long token = 0; token < tokens; token++) {
            const float *from = x + token * columns;
            __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
            for (long i = 0; i < whole; i += 8) {
                const __m128i bits = _mm_loadu_si128((const __m128i *)(w + i));
                const __m256 values = kind == FLOAT16
                    ? _mm256_cvtph_ps(bits)
                    : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
                acc[i / 8 % 4] = _mm256_fmadd_ps(values, _mm256_loadu_ps(from + i), acc[i / 8 % 4]);
            }
            float total = sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
            for (long i = whole; i < columns; i++) total += stored(w, i, kind) * from[i];
            y[token * rows + row] = total;
        }
    }
}
