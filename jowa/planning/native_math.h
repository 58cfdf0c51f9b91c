// Vectors, the functions of a transformer on them, and matrix products of few rows, in float32.
// T rows, K summed up, N columns.

#pragma once

#include <cstdint>
#include <initializer_list>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 13;  // of accumulators ROWS times two: they fill the registers
#else
constexpr int LANES = 8, ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;  // columns that are computed at once

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }
inline Vec all(float x) { return x - Vec{}; }
inline Vec larger(Vec x, Vec y) { return x > y ? x : y; }
inline int64_t up(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

inline float sum(Vec x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

// exp for x <= 0: 2^n times the series of the rest.
inline Vec exp_(Vec x) {
    x = larger(x, all(-87.f));
    Vec n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // rounds to an integer
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = all(1.f / 720);
    for (float c : {1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f}) p = p * r + c;
    Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return p * (Vec)power;
}

// x·Φ(x), the error function by Abramowitz and Stegun 7.1.26 (to 1.5e-7).
inline Vec gelu(Vec x) {
    Vec z = x * 0.70710678f, a = larger(z, -z), t = 1.f / (1.f + 0.3275911f * a);
    Vec p = all(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
    Vec e = 1.f - p * t * exp_(-a * a);
    return 0.5f * x * (1.f + (z < 0.f ? -e : e));
}

enum Then { KEEP, RELU, GELU, ADD };

// M rows of A (·, K) times one panel of B, whose rows stand `ldb` apart.
template <int M>
void tile(const float* A, int64_t lda, const float* B, int64_t ldb, int64_t K, const float* bias,
          float* C, int64_t ldc, Then then) {
    Vec sums[M][2];
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < M; i++) sums[i][j] = bias ? load(bias + j * LANES) : Vec{};
    for (int64_t k = 0; k < K; k++) {
        Vec left = load(B + k * ldb), right = load(B + k * ldb + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            float a = A[i * lda + k];
            sums[i][0] += a * left;
            sums[i][1] += a * right;
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < 2; j++) {
            float* place = C + i * ldc + j * LANES;
            Vec x = sums[i][j];
            if (then == RELU) x = larger(x, Vec{});
            if (then == GELU) x = gelu(x);
            if (then == ADD) x += load(place);
            store(place, x);
        }
}

typedef void (*Tile)(const float*, int64_t, const float*, int64_t, int64_t, const float*, float*,
                     int64_t, Then);
#if defined(__AVX512F__)
const Tile TILES[] = {nullptr,  tile<1>, tile<2>, tile<3>,  tile<4>,  tile<5>,  tile<6>,
                      tile<7>,  tile<8>, tile<9>, tile<10>, tile<11>, tile<12>, tile<13>};
#else
const Tile TILES[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
#endif

// C (T, N) of A (T, K) and B, of which panels stand `next` and rows `ldb` apart.
void multiply(const float* A, int64_t lda, int64_t T, int64_t K, const float* B, int64_t next,
              int64_t ldb, const float* bias, float* C, int64_t ldc, int64_t N, Then then) {
    int64_t blocks = (T + ROWS - 1) / ROWS;
    for (int64_t n = 0; n < N; n += PANEL) {
        const float* panel = B + n / PANEL * next;
        for (int64_t i = 0; i < blocks; i++) {
            int64_t first = T * i / blocks, last = T * (i + 1) / blocks;
            TILES[last - first](A + first * lda, lda, panel, ldb, K, bias ? bias + n : nullptr,
                                C + first * ldc + n, ldc, then);
        }
    }
}

}  // namespace
