/* One token through the blocks of a decoder: norm, attention over what the cache holds, norm, gated product. The products
   are those of planes.c; what natprec/runtime/kernels/block.py describes as a structure is declared here in the same order. */
#include "vectors.h"

#include <stdlib.h>

enum { PLANES, HALF, INT8, PRODUCTS = 3 };

/* y = x times a weight, plus a bias. `how` it is stored; PLANES and HALF have the arguments of planes.c. */
typedef struct {
    const void *weight, *scale;
    const int8_t *zero;
    const float *bias;
    long rows, columns, step, per_scale;
    int how, kind, bits, int8_inputs;
} product_t;

/* A block. Products side by side (query, key, value; gate, up) are one or several, the rows of one after those of another. */
typedef struct {
    product_t states[PRODUCTS], output, gate_up[PRODUCTS], down;
    const float *norm_before, *norm_between, *norm_query, *norm_key; /* the last two may be 0 */
    float eps_before, eps_between, eps_query, eps_key, scaling;
    int states_count, gate_up_count;
    long hidden, heads, key_heads, size, inner;
} block_t;

int natprec_linear(const float *x, long tokens, long columns, const uint8_t *planes, const void *scale, int kind,
                   const int8_t *zero, int bits, long rows, long step, long per_scale, float *y, int threads);
void natprec_half(const float *x, long tokens, long columns, const uint16_t *weight, int kind, long rows, float *y, int threads);
void natprec_tokens(const float *x, long tokens, long columns, uint8_t *codes, float *scale, int threads);

/* Whole numbers times whole numbers: exact, 127 * 127 * 2^17 fit. */
INLINE int32_t dot_of_codes(const int8_t *weight, const int8_t *x, const long count) {
    int32_t total = 0;
#pragma omp simd reduction(+ : total)
    for (long i = 0; i < count; i++) total += (int32_t)((int16_t)weight[i] * (int16_t)x[i]);
    return total;
}

/* x as int8 gives it back: what a kernel that takes floats multiplies under int8 activations. */
static void given_back(const uint8_t *codes, const float step, const long count, float *x) {
    for (long i = 0; i < count; i++) x[i] = (float)(codes[i] - 128) * step;
}

static void product_of_codes(const product_t *p, const uint8_t *codes, const float step, float *y, const int threads) {
    int8_t x[p->columns];
    for (long i = 0; i < p->columns; i++) x[i] = (int8_t)(codes[i] - 128);
    const int8_t *weight = p->weight;
    const float *scale = p->scale;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < p->rows; row++) {
        ask_ahead(weight + row * p->columns, p->columns);
        y[row] = (float)dot_of_codes(weight + row * p->columns, x, p->columns) * scale[row] * step;
    }
}

/* One token; x is spoilt under int8 activations. 0 if there was no memory. */
static int multiplied(const product_t *p, float *x, float *y, const int threads) {
    int enough = 1;
    float step = 0;
    if (p->int8_inputs) {
        uint8_t codes[p->columns];
        natprec_tokens(x, 1, p->columns, codes, &step, 1);
        if (p->how == INT8) product_of_codes(p, codes, step, y, threads);
        else given_back(codes, step, p->columns, x);
    }
    if (p->how == HALF) natprec_half(x, 1, p->columns, p->weight, p->kind, p->rows, y, threads);
    if (p->how == PLANES)
        enough = natprec_linear(x, 1, p->columns, p->weight, p->scale, p->kind, p->zero, p->bits, p->rows, p->step,
                                p->per_scale, y, threads);
    if (p->bias)
        for (long row = 0; row < p->rows; row++) y[row] += p->bias[row];
    return enough;
}

/* Several products of one input. */
static int all_multiplied(const product_t *p, const int count, float *x, float *y, const int threads) {
    int enough = 1;
    for (int i = 0; i < count; y += p[i++].rows) enough &= multiplied(p + i, x, y, threads);
    return enough;
}

/* One head's attention to `length` keys and values, `size` floats each; scores is `length` floats of room. */
static void attended(const float *query, const float *keys, const float *values, const long length, const long size,
                     const float scaling, float *scores, float *y) {
    float largest = -INFINITY, total = 0;
    for (long t = 0; t < length; t++) {
        const float *key = keys + t * size;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (long i = 0; i < size; i++) dot += query[i] * key[i];
        scores[t] = dot * scaling * LOG2_E;
        largest = scores[t] > largest ? scores[t] : largest;
    }
#pragma omp simd reduction(+ : total)
    for (long t = 0; t < length; t++) total += scores[t] = power_of_two(scores[t] - largest);
    memset(y, 0, size * sizeof(float));
    for (long t = 0; t < length; t++) {
        const float share = scores[t] / total, *value = values + t * size;
#pragma omp simd
        for (long i = 0; i < size; i++) y[i] += share * value[i];
    }
}

/* Norms of heads, rotary embedding; the new key and value go to their place in the cache. */
static void kept(const block_t *b, float *states, const float *cosine, const float *sine, float *keys, float *values,
                 const long capacity, const long at) {
    const long size = b->size, turned = b->heads + b->key_heads;
    for (long head = 0; head < turned; head++) {
        const int is_key = head >= b->heads;
        const float *norm = is_key ? b->norm_key : b->norm_query;
        float *x = states + head * size;
        if (norm) normed(x, norm, size, is_key ? b->eps_key : b->eps_query, x);
        rotated(x, cosine, sine, size);
    }
    for (long head = 0; head < b->key_heads; head++) {
        const long place = (head * capacity + at) * size;
        memcpy(keys + place, states + (b->heads + head) * size, size * sizeof(float));
        memcpy(values + place, states + (turned + head) * size, size * sizeof(float));
    }
}

/* x (hidden) to y (hidden). keys and values (key heads, capacity, size) hold `length` tokens, and one more afterwards;
   0 if there was no memory. */
static int through(const block_t *b, const float *x, const float *cosine, const float *sine, float *keys, float *values,
                  long capacity, long length, float *y, int threads) {
    const long size = b->size, states = (b->heads + 2 * b->key_heads) * size, mixed = b->heads * size;
    const long row = length + 1, room = b->hidden + states + mixed + b->heads * row + 3 * b->inner;
    float *normal = malloc(room * sizeof(float));
    if (!normal) return 0;
    float *query = normal + b->hidden, *mix = query + states, *scores = mix + mixed, *gate = scores + b->heads * row;
    float *product = gate + 2 * b->inner;
    normed(x, b->norm_before, b->hidden, b->eps_before, normal);
    int enough = all_multiplied(b->states, b->states_count, normal, query, threads);
    kept(b, query, cosine, sine, keys, values, capacity, length);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long head = 0; head < b->heads; head++) {
        const long from = head / (b->heads / b->key_heads) * capacity * size;
        attended(query + head * size, keys + from, values + from, row, size, b->scaling, scores + head * row, mix + head * size);
    }
    enough &= multiplied(&b->output, mix, y, threads);
    for (long i = 0; i < b->hidden; i++) y[i] += x[i];
    normed(y, b->norm_between, b->hidden, b->eps_between, normal);
    enough &= all_multiplied(b->gate_up, b->gate_up_count, normal, gate, threads);
    gated(gate, gate + b->inner, b->inner, product);
    enough &= multiplied(&b->down, product, normal, threads);
    for (long i = 0; i < b->hidden; i++) y[i] += normal[i];
    free(normal);
    return enough;
}

/* One token through `count` blocks of one size: x (hidden) to y (hidden). Each block has its keys and values, (key heads, its
   capacity, size), of `length` tokens, and one more afterwards; 0 if there was no memory. */
int natprec_blocks(const block_t *const *blocks, long count, const float *x, const float *cosine, const float *sine,
                   float *const *keys, float *const *values, const long *capacity, long length, float *y, int threads) {
    const long hidden = blocks[0]->hidden;
    float between[hidden];
    memcpy(y, x, hidden * sizeof(float));
    int enough = 1;
    for (long i = 0; i < count && enough; i++) {
        memcpy(between, y, hidden * sizeof(float));
        enough = through(blocks[i], between, cosine, sine, keys[i], values[i], capacity[i], length, y, threads);
    }
    return enough;
}
