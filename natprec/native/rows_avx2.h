/* Rows of a low-bit weight times activations, 8 int32 at a time: codes and activations meet as int16. */

INLINE float sum(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Rows that meet activations together. */
enum { ROWS = 1 };

/* Blocks in a unit, of those that share the rounding of activations: all. */
INLINE long unit_of(const long blocks) { return blocks; }

/* Activations stay as they are. */
static void arrange(int16_t *codes, const long blocks, const long unit) { (void)codes, (void)blocks, (void)unit; }

/* acc + codes * x, 32 of them, in eight int32. */
INLINE __m256i dot(__m256i acc, __m256i codes, const int16_t *x) {
    const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes));
    const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(codes, 1));
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(low, _mm256_loadu_si256((const __m256i *)x)));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(high, _mm256_loadu_si256((const __m256i *)(x + 16))));
}

INLINE void rows_of(const weight_t w, const int bits, const long unit, const int count, const long row, const activations_t x,
                    float *y) {
    (void)count;
    const long units = w.blocks / unit, scales = units / w.per_scale;
    const uint8_t *planes = w.planes + row * w.blocks * 4 * bits;
    __m256 total = _mm256_setzero_ps();
    ask_ahead(planes, w.blocks * 4 * bits);
    for (long at = 0; at < units; at++) {
        const long group = row * scales + (w.per_scale == 1 ? at : at / w.per_scale);
        const int middle = (1 << (bits - 1)) + (w.zero ? w.zero[group] : 0);
        __m256i acc = _mm256_zextsi128_si256(_mm_cvtsi32_si128(-middle * x.sum[at]));
        for (long block = at * unit; block < (at + 1) * unit; block++, planes += 4 * bits)
            acc = dot(acc, decode(planes, bits), x.codes + block * BLOCK);
        const __m256 scale = _mm256_set1_ps(stored(w.scale, group, w.kind) * x.scale[at]);
        total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), scale, total);
    }
    *y = sum(total);
}

/* x times one row of 16-bit floats. */
INLINE float half_dot(const float *x, const uint16_t *weight, const long columns, const int kind) {
    const long whole = columns / 8 * 8;
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (long i = 0; i < whole; i += 8) {
        const __m128i bits = _mm_loadu_si128((const __m128i *)(weight + i));
        const __m256 values = kind == FLOAT16 ? _mm256_cvtph_ps(bits)
                                              : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
        acc[i / 8 % 4] = _mm256_fmadd_ps(values, _mm256_loadu_ps(x + i), acc[i / 8 % 4]);
    }
    float total = sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (long i = whole; i < columns; i++) total += stored(weight, i, kind) * x[i];
    return total;
}
