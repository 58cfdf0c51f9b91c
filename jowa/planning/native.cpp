// Reading contexts (`decoding.prefill`) and drafted decoding of imagined frames (`decode.drafted`)
// for CPUs, compiled when first used (native.py).
//
// Rows are independent, so each is decoded to its end by one thread, whose working set stays in its
// own cache, without the thousands of small operations that PyTorch would take. Sums are taken in
// one order, whatever the draft, the pass and the number of threads: the same bits in every run.
//
// T tokens of a pass, D width, H heads, d = D/H, S keys, V vocabulary; float32 throughout.

#include "native_math.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int BLOCK = 37, FRAME = 36;

struct Linear {
    const float *weight, *bias;  // panels (N/PANEL, K, PANEL); N with padding
};

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Norm ln1;
    Linear qkv, proj;
    Norm ln2;
    Linear up, down;
};

struct Cached {
    float *prefix_keys, *prefix_values;  // (H, B, P, d)
    float *tail_keys, *tail_values;      // (H, R, S, d)
};

}  // namespace

// As native.py fills it.
struct Task {
    int64_t layers, heads, width, vocabulary;
    int64_t rows, environments, prefix, capacity, filled, threads;
    const Layer* blocks;
    Norm ln_f;
    Linear first, second, gate;  // of the observation head; gate weight (D,), or null
    const float* table;          // (V + 1, D)
    const Cached* cache;
    const float *prefix_mask, *tail_mask;  // (B, P) and (R, filled), not 0 at what is not seen
    const float* base;                     // (R, 37, D), or contexts (B, P, D)
    const int64_t *previous, *last;        // (R, 36); a context's last real position (B,)
    int64_t* tokens;                       // (R, 36), out
    float *action_hidden, *hidden;         // (R, D), out
    int64_t passes, computed;              // out: of the row that took most, tokens of all
};

namespace {

// One thread's scratch, and its decoding of one row after the other.
class Worker {
  public:
    explicit Worker(const Task& task)
        : t(task), D(t.width), H(t.heads), d(D / H),
          S(up(t.prefix + t.filled + BLOCK)), N(up(t.vocabulary)) {
        struct Part {
            float** place;
            int64_t size;
        };
        const Part parts[] = {{&keys, t.layers * D * S}, {&values, t.layers * D * S},
                              {&x, BLOCK * D},           {&normed, BLOCK * D},
                              {&qkv, BLOCK * 3 * D},     {&found, BLOCK * D},
                              {&wide, BLOCK * 4 * D},    {&scores, BLOCK * S},
                              {&logits, BLOCK * N}};
        int64_t size = PANEL;
        for (const Part& part : parts) size += up(part.size);
        thread_local std::vector<float> memory;  // kept, as fresh memory is slow
        if (int64_t(memory.size()) < size) memory.resize(size);
        auto from = reinterpret_cast<uintptr_t>(memory.data());
        float* next = memory.data() + (-from % (4 * PANEL)) / 4;  // vectors within cache lines
        for (const Part& part : parts) {
            *part.place = next;
            next += up(part.size);
        }
    }

    // Decodes a row, to `t.tokens`. The draft is the frame before, changed as it changed in row
    // `like`, if there is one (-1: none), where they were the same.
    void decode(int64_t row, int64_t like) {
        int64_t* tokens = t.tokens + row * FRAME;
        const int64_t* before = t.previous + row * FRAME;
        std::copy(before, before + FRAME, tokens);
        for (int64_t k = 0; k < FRAME && like >= 0; k++)
            if (t.previous[like * FRAME + k] == before[k]) tokens[k] = t.tokens[like * FRAME + k];
        remember(row);
        int64_t taken = 0;
        for (int64_t start = 0; start < BLOCK; taken++) start = pass(row, start, tokens);
        passes = std::max(passes, taken);
        for (int64_t l = 0; l < t.layers; l++) {
            const Cached& c = t.cache[l];
            keep(l, past, BLOCK, c.tail_keys, c.tail_values, row, t.capacity, t.filled);
        }
    }

    // Reads a context block by block.
    void read(int64_t row) {
        int64_t end = t.last[row] + 1;
        past = 0;
        for (int64_t start = 0; start < end; start += BLOCK) {
            int64_t T = std::min<int64_t>(BLOCK, end - start);
            const float* from = t.base + (row * t.prefix + start) * D;
            std::copy(from, from + T * D, x);
            compute(start, T, start + T == end);
        }
        std::copy(normed, normed + D, t.hidden + row * D);
        for (int64_t l = 0; l < t.layers; l++) {
            const Cached& c = t.cache[l];
            keep(l, 0, end, c.prefix_keys, c.prefix_values, row, t.prefix, 0);
        }
    }

    int64_t passes = 0, computed = 0;

  private:
    const Task& t;
    const int64_t D, H, d, S, N;
    int64_t past = 0;               // keys of before the block
    int64_t held = -1, known = 0;  // the environment whose prefix is collected, and its keys
    // Keys (layers, H, d, S) and values (layers, H, S, d) that the row sees, without gaps.
    float *keys, *values, *x, *normed, *qkv, *found, *wide, *scores, *logits;

    void put(int64_t layer, int64_t head, int64_t at, const float* key, const float* value) {
        float* column = &keys[(layer * H + head) * d * S + at];
        for (int64_t i = 0; i < d; i++) column[i * S] = key[i];
        std::copy(value, value + d, &values[((layer * H + head) * S + at) * d]);
    }

    // Collects what a row looks back on: of the prefix what is there from the row before, if that
    // was of the same environment.
    void remember(int64_t row) {
        int64_t B = t.environments, env = row / (t.rows / B);
        const float* mask = t.prefix_mask ? t.prefix_mask + env * t.prefix : nullptr;
        const float* gaps = t.tail_mask ? t.tail_mask + row * t.filled : nullptr;
        for (int64_t l = 0; l < t.layers; l++)
            for (int64_t h = 0; h < H; h++) {
                const Cached& c = t.cache[l];
                if (env != held)
                    known = gather(l, h, 0, c.prefix_keys, c.prefix_values, h * B + env, t.prefix,
                                   t.prefix, mask);
                past = gather(l, h, known, c.tail_keys, c.tail_values, h * t.rows + row, t.capacity,
                              t.filled, gaps);
            }
        held = env;
    }

    // Puts those of the first `count` keys and values in a row of (·, size, d) that the mask leaves
    // to the places from `at` on; returns the next place.
    int64_t gather(int64_t layer, int64_t head, int64_t at, const float* key, const float* value,
                   int64_t row, int64_t size, int64_t count, const float* mask) {
        for (int64_t p = 0; p < count; p++) {
            if (mask && mask[p] != 0) continue;
            int64_t from = (row * size + p) * d;
            put(layer, head, at++, key + from, value + from);
        }
        return at;
    }

    // Writes `count` keys and values from `first` on to a row's places in (H, R, size, d).
    void keep(int64_t layer, int64_t first, int64_t count, float* key, float* value, int64_t row,
              int64_t size, int64_t at) {
        for (int64_t h = 0; h < H; h++) {
            int64_t to = ((h * t.rows + row) * size + at) * d;
            const float* columns = &keys[(layer * H + h) * d * S + first];
            for (int64_t p = 0; p < count; p++)
                for (int64_t i = 0; i < d; i++) key[to + p * d + i] = columns[i * S + p];
            const float* from = &values[((layer * H + h) * S + first) * d];
            std::copy(from, from + count * d, value + to);
        }
    }

    void normalise(const Norm& norm, int64_t T) {
        for (int64_t i = 0; i < T; i++) {
            const float* from = &x[i * D];
            Vec total{}, squares{};
            for (int64_t k = 0; k < D; k += LANES) total += load(from + k);
            float mean = sum(total) / D;
            for (int64_t k = 0; k < D; k += LANES) {
                Vec off = load(from + k) - mean;
                squares += off * off;
            }
            float scale = 1.f / std::sqrt(sum(squares) / D + 1e-5f);
            for (int64_t k = 0; k < D; k += LANES)
                store(&normed[i * D + k], (load(from + k) - mean) * scale * load(norm.weight + k) +
                                              load(norm.bias + k));
        }
    }

    void apply(const Linear& map, const float* in, int64_t T, int64_t K,
               float* out, int64_t outputs, Then then) {
        multiply(in, K, T, K, map.weight, K * PANEL, PANEL, map.bias, out, outputs, outputs, then);
    }

    // Of the first `seen` scores their softmax, of those up to `end` zeros.
    static void softmax(float* row, int64_t seen, int64_t end) {
        for (int64_t k = seen; k < up(seen); k++) row[k] = -INFINITY;
        Vec top = load(row), total{};
        for (int64_t k = LANES; k < seen; k += LANES) top = larger(top, load(row + k));
        float most = top[0];
        for (int i = 1; i < LANES; i++) most = std::max(most, top[i]);
        for (int64_t k = 0; k < seen; k += LANES) {
            Vec e = exp_(load(row + k) - most);
            store(row + k, e);
            total += e;
        }
        float scale = 1.f / sum(total);
        for (int64_t k = 0; k < seen; k += LANES) store(row + k, load(row + k) * scale);
        for (int64_t k = seen; k < end; k++) row[k] = 0;
    }

    void attend(int64_t layer, int64_t start, int64_t T) {
        int64_t first = past + start, end = first + T;
        for (int64_t h = 0; h < H; h++) {
            multiply(&qkv[h * d], 3 * D, T, d, &keys[(layer * H + h) * d * S], PANEL, S, nullptr,
                     scores, S, up(end), KEEP);
            for (int64_t i = 0; i < T; i++) softmax(&scores[i * S], first + i + 1, end);
            multiply(scores, S, T, end, &values[(layer * H + h) * S * d], PANEL, d, nullptr,
                     &found[h * d], D, d, KEEP);
        }
    }

    // Activations `normed` of the T tokens in `x`, which stand at `start` of what follows the past;
    // of the last layer only those of the last `needed` tokens.
    void compute(int64_t start, int64_t T, int64_t needed) {
        float scale = 1.f / std::sqrt(float(d));
        for (int64_t l = 0; l < t.layers; l++) {
            const Layer& b = t.blocks[l];
            normalise(b.ln1, T);
            apply(b.qkv, normed, T, D, qkv, 3 * D, KEEP);
            for (int64_t i = 0; i < T; i++) {
                float* q = &qkv[i * 3 * D];
                for (int64_t h = 0; h < H; h++)
                    put(l, h, past + start + i, q + D + h * d, q + 2 * D + h * d);
                for (int64_t k = 0; k < D; k++) q[k] *= scale;
            }
            if (l == t.layers - 1 && needed < T) {
                int64_t skipped = T - needed;
                std::copy(x + skipped * D, x + T * D, x);
                std::copy(qkv + skipped * 3 * D, qkv + T * 3 * D, qkv);
                start += skipped, T = needed;
            }
            attend(l, start, T);
            apply(b.proj, found, T, D, x, D, ADD);
            normalise(b.ln2, T);
            apply(b.up, normed, T, D, wide, 4 * D, GELU);
            apply(b.down, wide, T, 4 * D, x, D, ADD);
        }
        normalise(t.ln_f, T);
    }

    // Computes the positions from `start` on, takes over what they predict and returns the first
    // that changed; 37 if none did.
    int64_t pass(int64_t row, int64_t start, int64_t* tokens) {
        int64_t T = BLOCK - start;
        computed += T;
        for (int64_t i = 0; i < T; i++) {
            int64_t at = start + i;
            const float* base = t.base + (row * BLOCK + at) * D;
            const float* token = t.table + (at ? tokens[at - 1] : t.vocabulary) * D;
            for (int64_t k = 0; k < D; k++) x[i * D + k] = base[k] + token[k];
        }
        compute(start, T, T);
        if (start == 0) std::copy(normed, normed + D, t.action_hidden + row * D);
        std::copy(normed + (T - 1) * D, normed + T * D, t.hidden + row * D);
        return predict(row, start, T - 1, tokens);
    }

    int64_t predict(int64_t row, int64_t start, int64_t T, int64_t* tokens) {
        apply(t.first, normed, T, D, found, D, RELU);
        apply(t.second, found, T, D, logits, N, KEEP);
        int64_t first = BLOCK;
        for (int64_t i = 0; i < T; i++) {
            float* of = &logits[i * N];
            int64_t at = start + i, hint = t.previous[row * FRAME + at];
            if (t.gate.weight && hint < t.vocabulary) {
                float gate = t.gate.bias[0];
                for (int64_t k = 0; k < D; k++) gate += normed[i * D + k] * t.gate.weight[k];
                of[hint] += gate;
            }
            int64_t guess = largest(of);
            if (guess != tokens[at] && first == BLOCK) first = at + 1;
            tokens[at] = guess;
        }
        return first;
    }

    // Where the largest logit is, the first of equals.
    int64_t largest(float* of) const {
        for (int64_t k = t.vocabulary; k < N; k++) of[k] = -INFINITY;
        Vec top = load(of);
        Ints at{};
        for (int32_t k = LANES; k < N; k += LANES) {
            Vec next = load(of + k);
            at = next > top ? Ints{} + k : at;
            top = larger(top, next);
        }
        int best = 0;
        for (int i = 1; i < LANES; i++)
            if (top[i] > top[best] || (top[i] == top[best] && at[i] + i < at[best] + best))
                best = i;
        return at[best] + best;
    }
};

}  // namespace

extern "C" int64_t panel() { return PANEL; }

extern "C" void read_contexts(Task* task) {
#pragma omp parallel num_threads(std::min(task->threads, task->rows))
    {
        Worker worker(*task);
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < task->rows; row++) worker.read(row);
    }
}

extern "C" void decode(Task* task) {
    // Rows of an environment one after the other, so that each takes over from the one before what
    // changes; fewer in turn where threads would have nothing to do.
    int64_t rows = task->rows, share = std::max<int64_t>(1, rows / task->threads);
    int64_t group = std::min(rows / task->environments, share);
    int64_t passes = 0, computed = 0;
#pragma omp parallel num_threads(std::min(task->threads, rows)) reduction(max : passes) \
    reduction(+ : computed)
    {
        Worker worker(*task);
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < rows; first += group)
            for (int64_t row = first; row < std::min(first + group, rows); row++)
                worker.decode(row, row > first ? row - 1 : -1);
        passes = worker.passes;
        computed += worker.computed;
    }
    task->passes = passes;
    task->computed = computed;
}
