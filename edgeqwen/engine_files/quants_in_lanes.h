// Q4_0, Q8_0 and the searches for the scales of Q4_K, Q5_K and Q6_K in the lanes of AVX2, to the bytes that ggml's own
// code makes: a lane does the same operations in the same order. Where there is no AVX2, or multiplying and adding may
// be fused, ggml's own code runs.
static float make_qx_quants(int n, int nmax, const float * GGML_RESTRICT x, int8_t * GGML_RESTRICT L, int rmse_type,
        const float * GGML_RESTRICT qw);
static float make_qkx2_quants(int n, int nmax, const float * GGML_RESTRICT x, const float * GGML_RESTRICT weights,
        uint8_t * GGML_RESTRICT L, float * GGML_RESTRICT the_min, uint8_t * GGML_RESTRICT Laux,
        float rmin, float rdelta, int nstep, bool use_mad);

#if defined(__x86_64__) && !defined(__FMA__)
#define IN_LANES
#include <immintrin.h>
#define LANES __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline)) LANES

// x[8][n] turned to t[n][8]
INLINE void lanes_turn(const float * GGML_RESTRICT x, __m256 * GGML_RESTRICT t, int n) {
    for (int i = 0; i < n; ++i) {
        t[i] = _mm256_setr_ps(x[i], x[n + i], x[2*n + i], x[3*n + i], x[4*n + i], x[5*n + i], x[6*n + i], x[7*n + i]);
    }
}

INLINE __m256 lanes_abs(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }

INLINE __m256 lanes_pick(__m256 mask, __m256 a, __m256 b) { return _mm256_blendv_ps(b, a, mask); }

INLINE __m128i lanes_bytes(__m256i a, __m256i b) { // the low byte of each
    const __m256i byte = _mm256_set1_epi32(0xff);
    a = _mm256_and_si256(a, byte);
    b = _mm256_and_si256(b, byte);
    return _mm_packus_epi16(_mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)),
        _mm_packus_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1)));
}

// 32 values; the largest magnitude of all
INLINE float lanes_load(const float * GGML_RESTRICT x, __m256 * GGML_RESTRICT t) {
    for (int i = 0; i < 4; ++i) t[i] = _mm256_loadu_ps(x + 8*i);
    const __m256 most = _mm256_max_ps(_mm256_max_ps(lanes_abs(t[0]), lanes_abs(t[1])), _mm256_max_ps(lanes_abs(t[2]), lanes_abs(t[3])));
    __m128 amax = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    amax = _mm_max_ps(amax, _mm_movehl_ps(amax, amax));
    return _mm_cvtss_f32(_mm_max_ss(amax, _mm_movehdup_ps(amax)));
}

LANES static void lanes_q4_0(const float * GGML_RESTRICT x, block_q4_0 * GGML_RESTRICT y, int64_t k) {
    for (int64_t b = 0; b < k/QK4_0; ++b, x += QK4_0) {
        __m256 t[4];
        const float amax = lanes_load(x, t);
        float max = 0; // the first that is as large
        for (int i = 3; i >= 0 && amax > 0; --i) {
            const int equal = _mm256_movemask_ps(_mm256_cmp_ps(lanes_abs(t[i]), _mm256_set1_ps(amax), _CMP_EQ_OQ));
            if (equal) max = x[8*i + __builtin_ctz(equal)];
        }
        const float d = max / -8, id = d ? 1.0f/d : 0.0f;
        y[b].d = GGML_FP32_TO_FP16(d);
        __m256i q[4];
        for (int i = 0; i < 4; ++i) {
            q[i] = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_mul_ps(t[i], _mm256_set1_ps(id)), _mm256_set1_ps(8.5f)));
            q[i] = _mm256_srai_epi32(_mm256_slli_epi32(q[i], 24), 24); // (int8_t)
            q[i] = _mm256_min_epi32(q[i], _mm256_set1_epi32(15));
        }
        const __m256i low = _mm256_or_si256(q[0], _mm256_slli_epi32(q[2], 4));
        const __m256i high = _mm256_or_si256(q[1], _mm256_slli_epi32(q[3], 4));
        _mm_storeu_si128((__m128i *)y[b].qs, lanes_bytes(low, high));
    }
}

LANES static void lanes_q8_0(const float * GGML_RESTRICT x, block_q8_0 * GGML_RESTRICT y, int64_t k) {
    const __m256 sign = _mm256_set1_ps(-0.f), half = _mm256_set1_ps(0.49999997f);
    for (int64_t b = 0; b < k/QK8_0; ++b, x += QK8_0) {
        __m256 t[4];
        const float d = lanes_load(x, t) / ((1 << 7) - 1), id = d ? 1.0f/d : 0.0f;
        y[b].d = GGML_FP32_TO_FP16(d);
        __m256i q[4];
        for (int i = 0; i < 4; ++i) { // roundf: towards zero after the number below a half, for 0.49999997 is no half
            const __m256 v = _mm256_mul_ps(t[i], _mm256_set1_ps(id));
            q[i] = _mm256_cvttps_epi32(_mm256_add_ps(v, _mm256_or_ps(half, _mm256_and_ps(v, sign))));
        }
        _mm_storeu_si128((__m128i *)y[b].qs, lanes_bytes(q[0], q[1]));
        _mm_storeu_si128((__m128i *)(y[b].qs + 16), lanes_bytes(q[2], q[3]));
    }
}

// nearest_int, kept within low and high
INLINE __m256i lanes_nearest(__m256 a, int low, int high) {
    const __m256i bits = _mm256_castps_si256(_mm256_add_ps(a, _mm256_set1_ps(12582912.f)));
    const __m256i l = _mm256_sub_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x00400000));
    return _mm256_max_epi32(_mm256_set1_epi32(low), _mm256_min_epi32(_mm256_set1_epi32(high), l));
}

// Eight groups of 16 as make_qx_quants(16, 32, x, L, 1, NULL) does them.
LANES static void lanes_q6_K(const float * GGML_RESTRICT x, int8_t * GGML_RESTRICT L, float * GGML_RESTRICT scales) {
    __m256 t[16], amax = _mm256_setzero_ps(), max = amax;
    lanes_turn(x, t, 16);
    for (int i = 0; i < 16; ++i) {
        const __m256 ax = lanes_abs(t[i]), more = _mm256_cmp_ps(ax, amax, _CMP_GT_OQ);
        amax = lanes_pick(more, ax, amax);
        max = lanes_pick(more, t[i], max);
    }
    // a group of zeros is searched like another, with other values, and set to zero at the end
    const __m256 zero = _mm256_cmp_ps(amax, _mm256_set1_ps(GROUP_MAX_EPS), _CMP_LT_OQ);
    max = lanes_pick(zero, _mm256_set1_ps(1.f), max);
    for (int i = 0; i < 16; ++i) t[i] = _mm256_andnot_ps(zero, t[i]);

    __m256 scale = _mm256_setzero_ps(), best = scale, inverse = scale;
    for (int k = 0; k < 19; ++k) {
        const int is = k == 0 ? 0 : k < 10 ? k - 10 : k - 9;
        const __m256 iscale = _mm256_div_ps(_mm256_set1_ps(is ? -(32 + 0.1f*is) : -32.f), max);
        __m256 sumlx = _mm256_setzero_ps(), suml2 = sumlx;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            const __m256 l = _mm256_cvtepi32_ps(lanes_nearest(_mm256_mul_ps(iscale, t[i]), -32, 31));
            const __m256 w = _mm256_mul_ps(t[i], t[i]);
            sumlx = _mm256_add_ps(sumlx, _mm256_mul_ps(_mm256_mul_ps(w, t[i]), l));
            suml2 = _mm256_add_ps(suml2, _mm256_mul_ps(_mm256_mul_ps(w, l), l));
        }
        __m256 better = _mm256_cmp_ps(suml2, _mm256_setzero_ps(), _CMP_GT_OQ);
        if (k == 0) inverse = iscale;
        else better = _mm256_and_ps(better, _mm256_cmp_ps(_mm256_mul_ps(sumlx, sumlx), _mm256_mul_ps(best, suml2), _CMP_GT_OQ));
        scale = lanes_pick(better, _mm256_div_ps(sumlx, suml2), scale);
        best = lanes_pick(better, _mm256_mul_ps(scale, sumlx), best);
        inverse = lanes_pick(better, iscale, inverse);
    }
    _mm256_storeu_ps(scales, _mm256_andnot_ps(zero, scale));
    for (int i = 0; i < 16; ++i) {
        int32_t l[8];
        const __m256i nearest = _mm256_add_epi32(lanes_nearest(_mm256_mul_ps(inverse, t[i]), -32, 31), _mm256_set1_epi32(32));
        _mm256_storeu_si256((__m256i *)l, _mm256_andnot_si256(_mm256_castps_si256(zero), nearest));
        for (int g = 0; g < 8; ++g) L[16*g + i] = l[g];
    }
}

// Eight groups of 32 as make_qkx2_quants(32, nmax, x, weights, L, mins, Laux, rmin, 0.1f, nstep, false) does them.
INLINE void lanes_qx_K(int nmax, float rmin, int nstep, const float * GGML_RESTRICT x, uint8_t * GGML_RESTRICT L,
        float * GGML_RESTRICT scales, float * GGML_RESTRICT mins) {
    __m256 t[32], w[32], l[32];
    lanes_turn(x, t, 32);
    __m256 sum_x2 = _mm256_setzero_ps();
    for (int i = 0; i < 32; ++i) sum_x2 = _mm256_add_ps(sum_x2, _mm256_mul_ps(t[i], t[i]));
    const __m256 av_x = _mm256_sqrt_ps(_mm256_div_ps(sum_x2, _mm256_set1_ps(32.f)));
    for (int i = 0; i < 32; ++i) w[i] = _mm256_add_ps(av_x, lanes_abs(t[i]));
    __m256 min = t[0], max = t[0], sum_w = w[0], sum_x = _mm256_mul_ps(w[0], t[0]);
    for (int i = 1; i < 32; ++i) {
        min = lanes_pick(_mm256_cmp_ps(t[i], min, _CMP_LT_OQ), t[i], min);
        max = lanes_pick(_mm256_cmp_ps(t[i], max, _CMP_GT_OQ), t[i], max);
        sum_w = _mm256_add_ps(sum_w, w[i]);
        sum_x = _mm256_add_ps(sum_x, _mm256_mul_ps(w[i], t[i]));
    }
    const __m256 none = _mm256_setzero_ps(), one = _mm256_set1_ps(1.f);
    min = lanes_pick(_mm256_cmp_ps(min, none, _CMP_GT_OQ), none, min);
    const __m256 flat = _mm256_cmp_ps(max, min, _CMP_EQ_OQ), flat_min = min;
    max = lanes_pick(flat, _mm256_add_ps(lanes_abs(min), one), max);

    __m256 inverse = _mm256_div_ps(_mm256_set1_ps(nmax), _mm256_sub_ps(max, min)), lowest = min;
    __m256 scale = _mm256_div_ps(one, inverse), best = none;
    for (int i = 0; i < 32; ++i) {
        l[i] = _mm256_cvtepi32_ps(lanes_nearest(_mm256_mul_ps(inverse, _mm256_sub_ps(t[i], min)), 0, nmax));
        const __m256 diff = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(scale, l[i]), min), t[i]);
        best = _mm256_add_ps(best, _mm256_mul_ps(w[i], _mm256_mul_ps(diff, diff)));
    }
    for (int is = 0; is <= nstep; ++is) {
        const __m256 iscale = _mm256_div_ps(_mm256_set1_ps(rmin + 0.1f*is + nmax), _mm256_sub_ps(max, min));
        __m256 sum_l = none, sum_l2 = none, sum_xl = none;
        for (int i = 0; i < 32; ++i) {
            l[i] = _mm256_cvtepi32_ps(lanes_nearest(_mm256_mul_ps(iscale, _mm256_sub_ps(t[i], min)), 0, nmax));
            const __m256 wl = _mm256_mul_ps(w[i], l[i]);
            sum_l = _mm256_add_ps(sum_l, wl);
            sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(wl, l[i]));
            sum_xl = _mm256_add_ps(sum_xl, _mm256_mul_ps(wl, t[i]));
        }
        const __m256 D = _mm256_sub_ps(_mm256_mul_ps(sum_w, sum_l2), _mm256_mul_ps(sum_l, sum_l));
        __m256 this_scale = _mm256_div_ps(_mm256_sub_ps(_mm256_mul_ps(sum_w, sum_xl), _mm256_mul_ps(sum_x, sum_l)), D);
        __m256 this_min = _mm256_div_ps(_mm256_sub_ps(_mm256_mul_ps(sum_l2, sum_x), _mm256_mul_ps(sum_l, sum_xl)), D);
        const __m256 above = _mm256_cmp_ps(this_min, none, _CMP_GT_OQ);
        this_scale = lanes_pick(above, _mm256_div_ps(sum_xl, sum_l2), this_scale);
        this_min = lanes_pick(above, none, this_min);
        __m256 error = none;
        for (int i = 0; i < 32; ++i) {
            const __m256 diff = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(this_scale, l[i]), this_min), t[i]);
            error = _mm256_add_ps(error, _mm256_mul_ps(w[i], _mm256_mul_ps(diff, diff)));
        }
        const __m256 better = _mm256_and_ps(_mm256_cmp_ps(D, none, _CMP_GT_OQ), _mm256_cmp_ps(error, best, _CMP_LT_OQ));
        inverse = lanes_pick(better, iscale, inverse);
        lowest = lanes_pick(better, min, lowest);
        best = lanes_pick(better, error, best);
        scale = lanes_pick(better, this_scale, scale);
        min = lanes_pick(better, this_min, min);
    }
    _mm256_storeu_ps(scales, _mm256_andnot_ps(flat, scale));
    _mm256_storeu_ps(mins, _mm256_xor_ps(_mm256_set1_ps(-0.f), lanes_pick(flat, flat_min, min)));
    for (int i = 0; i < 32; ++i) {
        int32_t levels[8];
        const __m256i nearest = lanes_nearest(_mm256_mul_ps(inverse, _mm256_sub_ps(t[i], lowest)), 0, nmax);
        _mm256_storeu_si256((__m256i *)levels, _mm256_andnot_si256(_mm256_castps_si256(flat), nearest));
        for (int g = 0; g < 8; ++g) L[32*g + i] = levels[g];
    }
}

LANES static void lanes_q4_K(const float * GGML_RESTRICT x, uint8_t * GGML_RESTRICT L, float * GGML_RESTRICT scales, float * GGML_RESTRICT mins) {
    lanes_qx_K(15, -1.f, 20, x, L, scales, mins);
}

LANES static void lanes_q5_K(const float * GGML_RESTRICT x, uint8_t * GGML_RESTRICT L, float * GGML_RESTRICT scales, float * GGML_RESTRICT mins) {
    lanes_qx_K(31, -0.5f, 15, x, L, scales, mins);
}
#endif

// Whether the blocks are written.
static bool quantized_q4_0(const float * GGML_RESTRICT x, block_q4_0 * GGML_RESTRICT y, int64_t k) {
#ifdef IN_LANES
    if (__builtin_cpu_supports("avx2")) {
        lanes_q4_0(x, y, k);
        return true;
    }
#endif
    (void)x; (void)y; (void)k;
    return false;
}

static bool quantized_q8_0(const float * GGML_RESTRICT x, block_q8_0 * GGML_RESTRICT y, int64_t k) {
#ifdef IN_LANES
    if (__builtin_cpu_supports("avx2")) {
        lanes_q8_0(x, y, k);
        return true;
    }
#endif
    (void)x; (void)y; (void)k;
    return false;
}

// The scale of group ib of the 16 of a block; its levels go to L.
static float searched_q6_K(int ib, const float * GGML_RESTRICT x, int8_t * GGML_RESTRICT L, float * GGML_RESTRICT scales) {
#ifdef IN_LANES
    if (__builtin_cpu_supports("avx2")) {
        if (ib % 8 == 0) lanes_q6_K(x + 16*ib, L + 16*ib, scales + ib);
        return scales[ib];
    }
#endif
    return make_qx_quants(16, 32, x + 16*ib, L + 16*ib, 1, NULL);
}

// The scale of group j of the 8 of a block of Q4_K or Q5_K (nmax 15 or 31); its levels go to L, its minimum to mins.
static float searched_qx_K(int nmax, int j, const float * GGML_RESTRICT x, uint8_t * GGML_RESTRICT L, float * GGML_RESTRICT scales, float * GGML_RESTRICT mins) {
#ifdef IN_LANES
    if (__builtin_cpu_supports("avx2")) {
        if (j == 0) (nmax == 15 ? lanes_q4_K : lanes_q5_K)(x, L, scales, mins);
        return scales[j];
    }
#endif
    uint8_t Laux[32];
    float weights[32], sum_x2 = 0;
    x += 32*j;
    for (int l = 0; l < 32; ++l) sum_x2 += x[l] * x[l];
    const float av_x = sqrtf(sum_x2/32);
    for (int l = 0; l < 32; ++l) weights[l] = av_x + fabsf(x[l]);
    return make_qkx2_quants(32, nmax, x, weights, L + 32*j, &mins[j], Laux, nmax == 15 ? -1.f : -0.5f, 0.1f, nmax == 15 ? 20 : 15, false);
}
