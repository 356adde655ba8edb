/* Rows of a low-bit weight times activations, 16 int32 at a time. A pair of blocks fills a register with 64 codes, one to a
   byte; an activation is 256 times a high byte plus a low one, both signed, and each has a product of its own (VNNI). */

/* Rows that meet activations together. */
enum { ROWS = 4 };

/* Blocks in a unit, of those that share the rounding of activations: a pair, or one where they are odd. */
INLINE long unit_of(const long blocks) { return blocks % 2 ? 1 : 2; }

/* Activations of a unit as its low and then its high bytes, in place. */
static void arrange(int16_t *codes, const long blocks, const long unit) {
    for (long first = 0; first < blocks; first += unit) {
        int8_t low[2 * BLOCK], high[2 * BLOCK];
        int16_t *from = codes + first * BLOCK;
        for (long i = 0; i < unit * BLOCK; i++) {
            low[i] = (int8_t)from[i];
            high[i] = (int8_t)((from[i] - low[i]) >> 8);
        }
        memcpy(from, low, unit * BLOCK);
        memcpy((int8_t *)from + unit * BLOCK, high, unit * BLOCK);
    }
}

/* 64 unsigned codes of two blocks, one below the other. */
INLINE __m512i decode_pair(const uint8_t *planes, const int bits) {
    const uint8_t *next = planes + 4 * bits;
    if (bits == 8) return _mm512_loadu_si512(planes);
    __m512i codes = _mm512_setzero_si512();
    int shift = 0;
    if (bits & 4) {
        const __m512i first = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)planes));
        const __m512i second = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)next));
        const __m512i four = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 1, 0, 1, 8, 9, 8, 9), second);
        codes = _mm512_srlv_epi64(four, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
        planes += 16, next += 16, shift = 4;
    }
    if (bits & 2) { /* rotated to their place, where the mask of the last operation (a | b & c) keeps them */
        int64_t words[2];
        memcpy(words, planes, 8), memcpy(words + 1, next, 8);
        const __m512i both = _mm512_mask_set1_epi64(_mm512_set1_epi64(words[0]), 0xF0, words[1]);
        const __m512i places = _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6);
        const __m512i two = _mm512_rorv_epi64(both, _mm512_sub_epi64(places, _mm512_set1_epi64(shift)));
        codes = _mm512_ternarylogic_epi64(codes, two, _mm512_set1_epi8((char)(3 << shift)), 0xF8);
        planes += 8, next += 8, shift += 2;
    }
    if (bits & 1) {
        int32_t words[2];
        memcpy(words, planes, 4), memcpy(words + 1, next, 4);
        const __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(words[0]), 0xFF00, words[1]);
        const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
        const __m512i one = _mm512_rorv_epi32(both, _mm512_sub_epi32(places, _mm512_set1_epi32(shift)));
        codes = _mm512_ternarylogic_epi64(codes, one, _mm512_set1_epi8((char)(1 << shift)), 0xF8);
    }
    return codes;
}

/* Codes times activations of a pair, in 16 parts. */
INLINE __m512 pair(const __m512i codes, const int8_t *x) {
    const __m512i low = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, _mm512_loadu_si512(x));
    const __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, _mm512_loadu_si512(x + 64));
    return _mm512_cvtepi32_ps(_mm512_add_epi32(low, _mm512_slli_epi32(high, 8)));
}

/* The same of one block, in 8 parts. */
INLINE __m512 single(const __m256i codes, const int8_t *x) {
    const __m256i low = _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, _mm256_loadu_si256((const __m256i *)x));
    const __m256i high = _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, _mm256_loadu_si256((const __m256i *)(x + 32)));
    return _mm512_zextps256_ps512(_mm256_cvtepi32_ps(_mm256_add_epi32(low, _mm256_slli_epi32(high, 8))));
}

/* 16 floats of 16 bits each, or as many as the mask says. */
INLINE __m512 widened(const uint16_t *values, const __mmask16 real, const int kind) {
    const __m256i halves = _mm256_maskz_loadu_epi16(real, values);
    if (kind == FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* What each unit's sum is worth in a row, and what the row has too much because codes are unsigned and zero is not zero. */
INLINE __m512 weighed(const weight_t w, const long row, const long units, const int middle, const activations_t x, float *worth) {
    const long scales = units / w.per_scale;
    const int alone = w.per_scale == 1 && w.kind != FLOAT32; /* scales are read 16 at a time, else one by one */
    __m512 excess = _mm512_setzero_ps();
    for (long at = 0, group = row * scales; at < units; group++) {
        const long last = alone ? units : at + w.per_scale;
        for (; at < last; at += 16) {
            const __mmask16 real = last - at < 16 ? (__mmask16)((1 << (last - at)) - 1) : 0xFFFF;
            __m512 scale;
            __m512i zero = _mm512_set1_epi32(middle);
            if (alone) {
                scale = widened((const uint16_t *)w.scale + group + at, real, w.kind);
                if (w.zero) zero = _mm512_add_epi32(zero, _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(real, w.zero + group + at)));
            } else {
                scale = _mm512_set1_ps(stored(w.scale, group, w.kind));
                if (w.zero) zero = _mm512_add_epi32(zero, _mm512_set1_epi32(w.zero[group]));
            }
            scale = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(real, x.scale + at));
            zero = _mm512_mullo_epi32(zero, _mm512_maskz_loadu_epi32(real, x.sum + at));
            _mm512_storeu_ps(worth + at, scale);
            excess = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(zero), excess);
        }
        at = last;
    }
    return excess;
}

INLINE void rows_of(const weight_t w, const int bits, const long unit, const int count, const long row, const activations_t x,
                    float *y) {
    const long units = w.blocks / unit, bytes = w.blocks * 4 * bits;
    const uint8_t *planes = w.planes + row * bytes;
    float worth[ROWS][units + 16];
    __m512 total[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++)
        total[r] = _mm512_sub_ps(_mm512_setzero_ps(), weighed(w, row + r, units, 1 << (bits - 1), x, worth[r]));
    ask_ahead(planes, count * bytes);
    for (long at = 0; at < units; at++, planes += unit * 4 * bits) {
        const int8_t *from = (const int8_t *)(x.codes + at * unit * BLOCK);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            const uint8_t *codes = planes + r * bytes;
            const __m512 sums = unit == 2 ? pair(decode_pair(codes, bits), from) : single(decode(codes, bits), from);
            total[r] = _mm512_fmadd_ps(sums, _mm512_set1_ps(worth[r][at]), total[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) y[r] = _mm512_reduce_add_ps(total[r]);
}

/* x times one row of 16-bit floats. */
INLINE float half_dot(const float *x, const uint16_t *weight, const long columns, const int kind) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    long i = 0;
    for (; i + 32 <= columns; i += 32) {
        const __m512 first = widened(weight + i, 0xFFFF, kind);
        const __m512 second = widened(weight + i + 16, 0xFFFF, kind);
        even = _mm512_fmadd_ps(first, _mm512_loadu_ps(x + i), even);
        odd = _mm512_fmadd_ps(second, _mm512_loadu_ps(x + i + 16), odd);
    }
    float total = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
    for (; i < columns; i++) total += stored(weight, i, kind) * x[i];
    return total;
}
