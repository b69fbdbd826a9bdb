// Products with weights that stay as small as the checkpoint has them, and attention
// over the places that are used, for processors.
//
// The graphs call these functions by name. They are compiled once, for the recipe's
// instruction set, and linked into every graph, so that loading needs nothing else.
// They are written in the compiler's own vector types; intrinsics only widen numbers.
//
// Sums are float32, LANES of them side by side. A product reads its weights once,
// however many rows it has.
//
// Shape suffixes: R rows, I input channels, O outputs, G groups of I, C places of a
// cache, N query heads, K key and value heads, H head width.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int64_t BLOCK = 16;    // outputs that a thread takes at once
constexpr int64_t FEW_ROWS = 8;  // up to so many, reading takes longer than multiplying
constexpr int64_t AHEAD = 2048;  // bytes of weights asked for before they are read

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Half;

template <typename To, typename From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "not as wide");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline Floats all(float value) { return Floats{} + value; }

inline float total(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#endif
  float lanes[LANES];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

#if defined(__AVX512F__)
inline Ints widen(const uint8_t* p) {
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline Ints widen(const int8_t* p) {
  return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline Ints widen(const Half* p) {
  return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
#elif defined(__AVX2__)
inline Ints widen(const uint8_t* p) {
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
inline Ints widen(const int8_t* p) {
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
inline Ints widen(const Half* p) {
  return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
}
#else
template <typename T>
inline Ints widen(const T* p) {
  Ints v;
  for (int i = 0; i < LANES; i++) v[i] = p[i];
  return v;
}
#endif

// Numbers of every float type as float32, exactly.
struct Bfloat16 {
  Half raw;
};
struct Float16 {
  Half raw;
};

inline float one(const float* p) { return *p; }
inline float one(const Bfloat16* p) { return bits<float>(uint32_t(p->raw) << 16); }
inline float one(const Float16* p) {
  const uint32_t sign = (p->raw & 0x8000u) << 16, rest = (p->raw & 0x7fffu) << 13;
  return bits<float>(bits<uint32_t>(bits<float>(rest) * 0x1p112f) | sign);
}
inline Floats several(const float* p) { return load(p); }
inline Floats several(const Bfloat16* p) {
  return bits<Floats>((Words)widen(&p->raw) << 16);
}
inline Floats several(const Float16* p) {
  const Words h = (Words)widen(&p->raw);
  const Words sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
  return bits<Floats>(bits<Words>(bits<Floats>(rest) * all(0x1p112f)) | sign);
}

inline void store(float* to, float value) { *to = value; }
inline void store(Bfloat16* to, float value) {  // to the nearest, ties to even
  const uint32_t raw = bits<uint32_t>(value);
  to->raw = Half((raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
}

template <typename T>
void to_floats(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats value = several(from + i);
    std::memcpy(to + i, &value, sizeof(value));
  }
  for (; i < count; i++) to[i] = one(from + i);
}

// A tensor of the graph.
struct View {
  char* data = nullptr;
  int64_t* sizes = nullptr;
  int32_t dtype = 0;

  explicit View(AtenTensorHandle handle) {
    void* start = nullptr;
    aoti_torch_get_data_ptr(handle, &start);
    aoti_torch_get_sizes(handle, &sizes);
    aoti_torch_get_dtype(handle, &dtype);
    data = static_cast<char*>(start);
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  void floats(int64_t start, int64_t count, float* to) const {
    if (dtype == aoti_torch_dtype_float32()) {
      to_floats(as<float>() + start, count, to);
    } else if (dtype == aoti_torch_dtype_bfloat16()) {
      to_floats(as<Bfloat16>() + start, count, to);
    } else {
      to_floats(as<Float16>() + start, count, to);
    }
  }
};

AOTITorchError make(int64_t rows, int64_t columns, int32_t dtype,
                    AtenTensorHandle* out) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  return aoti_torch_empty_strided(2, sizes, strides, dtype,
                                  aoti_torch_device_type_cpu(), 0, out);
}

// Two 4-bit codes of a byte less their zero point, as floats.
struct Nibbles {
#if defined(__AVX512F__)
  Floats table;  // a code is a place in it, and looking up takes its lowest bits
  explicit Nibbles(int zero)
      : table(Floats{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} -
              float(zero)) {}
  Floats low(Ints v) const {
    return (Floats)_mm512_permutexvar_ps((__m512i)v, (__m512)table);
  }
  Floats high(Ints v) const { return low(v >> 4); }
#else
  int zero;
  explicit Nibbles(int zero) : zero(zero) {}
  Floats low(Ints v) const { return __builtin_convertvector((v & 15) - zero, Floats); }
  Floats high(Ints v) const { return __builtin_convertvector((v >> 4) - zero, Floats); }
#endif
};

// Codes of one output's groups. `each` is told of pieces of a group in turn: places of
// input channels and as many weights, still without their scale.
struct Packed {
  typedef uint8_t Code;
  static constexpr int MIDDLE = 8;
  template <typename Several, typename One>
  static void each(const Code* code, int64_t bytes, int zero, Several several,
                   One one) {
    const Nibbles nibbles(zero);
    int64_t j = 0;
    for (; j + LANES <= bytes; j += LANES) {
      const Ints both = widen(code + j);
      several(j, nibbles.low(both));
      several(bytes + j, nibbles.high(both));
    }
    for (; j < bytes; j++) {
      one(j, float((code[j] & 15) - zero));
      one(bytes + j, float((code[j] >> 4) - zero));
    }
  }
};

struct Plain {
  typedef int8_t Code;
  static constexpr int MIDDLE = 0;
  template <typename Several, typename One>
  static void each(const Code* code, int64_t bytes, int zero, Several several,
                   One one) {
    int64_t j = 0;
    for (; j + LANES <= bytes; j += LANES)
      several(j, __builtin_convertvector(widen(code + j) - zero, Floats));
    for (; j < bytes; j++) one(j, float(code[j] - zero));
  }
};

struct Grouped {
  View code_OGx, scale_OG;
  const char* zero_OG;
  int64_t outputs, groups, bytes, size;

  Grouped(AtenTensorHandle code, AtenTensorHandle scale, AtenTensorHandle* zero)
      : code_OGx(code), scale_OG(scale), zero_OG(zero ? View(*zero).data : nullptr) {
    outputs = code_OGx.sizes[0], groups = code_OGx.sizes[1], bytes = code_OGx.sizes[2];
    size = is_packed() ? 2 * bytes : bytes;
  }
  bool is_packed() const { return code_OGx.dtype == aoti_torch_dtype_uint8(); }
  int64_t inputs() const { return groups * size; }
  template <typename Kind>
  int zero(int64_t place) const {
    typedef const typename Kind::Code* Zeros;
    return zero_OG ? reinterpret_cast<Zeros>(zero_OG)[place] : Kind::MIDDLE;
  }
};

template <typename Kind, int ROWS>
inline void grouped_row(const Grouped& w, int64_t o, const float* scale,
                        const float* x_RI, float* y_RO) {
  const int64_t inputs = w.inputs();
  const auto* code = w.code_OGx.as<typename Kind::Code>() + o * w.groups * w.bytes;
  Floats sum[ROWS] = {};
  float rest[ROWS] = {};
  for (int64_t g = 0; g < w.groups; g++, code += w.bytes) {
    __builtin_prefetch(code + AHEAD);
    const float* x = x_RI + g * w.size;
    Floats part[ROWS] = {};
    float tail[ROWS] = {};
    Kind::each(
        code, w.bytes, w.template zero<Kind>(o * w.groups + g),
        [&](int64_t i, Floats value) {
          for (int r = 0; r < ROWS; r++) part[r] += value * load(x + r * inputs + i);
        },
        [&](int64_t i, float value) {
          for (int r = 0; r < ROWS; r++) tail[r] += value * x[r * inputs + i];
        });
    for (int r = 0; r < ROWS; r++) {
      sum[r] += all(scale[g]) * part[r];
      rest[r] += scale[g] * tail[r];
    }
  }
  for (int r = 0; r < ROWS; r++) y_RO[r * w.outputs + o] = total(sum[r]) + rest[r];
}

template <typename T, int ROWS>
inline void float_row(const T* weight, int64_t outputs, int64_t inputs, int64_t o,
                      const float* x_RI, float* y_RO) {
  Floats sum[ROWS][2] = {};
  float rest[ROWS] = {};
  const T* w = weight + o * inputs;
  int64_t i = 0;
  for (; i + 2 * LANES <= inputs; i += 2 * LANES) {
    __builtin_prefetch(reinterpret_cast<const char*>(w + i) + AHEAD);
    const Floats low = several(w + i), high = several(w + i + LANES);
    for (int r = 0; r < ROWS; r++) {
      sum[r][0] += low * load(x_RI + r * inputs + i);
      sum[r][1] += high * load(x_RI + r * inputs + i + LANES);
    }
  }
  for (; i < inputs; i++)
    for (int r = 0; r < ROWS; r++) rest[r] += one(w + i) * x_RI[r * inputs + i];
  for (int r = 0; r < ROWS; r++)
    y_RO[r * outputs + o] = total(sum[r][0] + sum[r][1]) + rest[r];
}

// Calls `rows4(first)` for four rows at a time and `rows1(first)` for what is left.
template <typename Rows4, typename Rows1>
inline void by_rows(int64_t rows, Rows4 rows4, Rows1 rows1) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) rows4(r);
  for (; r < rows; r++) rows1(r);
}

template <typename Kind>
void grouped_rows(const Grouped& w, const float* x_RI, int64_t rows, float* y_RO) {
#pragma omp parallel
  {
    std::vector<float> scale(BLOCK * w.groups);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < w.outputs; first += BLOCK) {
      const int64_t last = std::min(first + BLOCK, w.outputs);
      w.scale_OG.floats(first * w.groups, (last - first) * w.groups, scale.data());
      for (int64_t o = first; o < last; o++) {
        const float* s = scale.data() + (o - first) * w.groups;
        const int64_t inputs = w.inputs();
        by_rows(
            rows,
            [&](int64_t r) {
              grouped_row<Kind, 4>(w, o, s, x_RI + r * inputs, y_RO + r * w.outputs);
            },
            [&](int64_t r) {
              grouped_row<Kind, 1>(w, o, s, x_RI + r * inputs, y_RO + r * w.outputs);
            });
      }
    }
  }
}

template <typename T>
void few_float_rows(const T* weight, int64_t outputs, int64_t inputs, const float* x_RI,
                int64_t rows, float* y_RO) {
#pragma omp parallel for schedule(static)
  for (int64_t o = 0; o < outputs; o++)
    by_rows(
        rows,
        [&](int64_t r) {
          float_row<T, 4>(weight, outputs, inputs, o, x_RI + r * inputs,
                          y_RO + r * outputs);
        },
        [&](int64_t r) {
          float_row<T, 1>(weight, outputs, inputs, o, x_RI + r * inputs,
                          y_RO + r * outputs);
        });
}

// One output's weights.
template <typename Kind>
inline void widen_row(const Grouped& w, int64_t o, float* scale, float* weight_I) {
  const auto* code = w.code_OGx.as<typename Kind::Code>() + o * w.groups * w.bytes;
  w.scale_OG.floats(o * w.groups, w.groups, scale);
  for (int64_t g = 0; g < w.groups; g++, code += w.bytes) {
    float* to = weight_I + g * w.size;
    Kind::each(
        code, w.bytes, w.template zero<Kind>(o * w.groups + g),
        [&](int64_t i, Floats value) {
          value *= all(scale[g]);
          std::memcpy(to + i, &value, sizeof(value));
        },
        [&](int64_t i, float value) { to[i] = value * scale[g]; });
  }
}

// Products of A rows with B outputs.
template <int A, int B>
inline void block(const float* x_AI, const float* w_BI, int64_t inputs, int64_t outputs,
                  float* y_AO) {
  Floats sum[A][B] = {};
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    Floats w[B];
    for (int b = 0; b < B; b++) w[b] = load(w_BI + b * inputs + i);
    for (int a = 0; a < A; a++) {
      const Floats x = load(x_AI + a * inputs + i);
      for (int b = 0; b < B; b++) sum[a][b] += x * w[b];
    }
  }
  for (int a = 0; a < A; a++)
    for (int b = 0; b < B; b++) {
      float rest = 0;
      for (int64_t j = i; j < inputs; j++)
        rest += x_AI[a * inputs + j] * w_BI[b * inputs + j];
      y_AO[a * outputs + b] = total(sum[a][b]) + rest;
    }
}

// Many rows: weights are widened, BLOCK outputs at a time, into a processor's own cache.
// `fill(first, last, to)` writes the weights of some outputs.
template <typename Fill>
void many_rows(const float* x_RI, int64_t rows, int64_t inputs, int64_t outputs,
               Fill fill, float* y_RO) {
  constexpr int A = LANES == 16 ? 4 : 2, B = 4;
#pragma omp parallel
  {
    std::vector<float> tile(BLOCK * inputs);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < outputs; first += BLOCK) {
      const int64_t last = std::min(first + BLOCK, outputs);
      fill(first, last, tile.data());
      for (int64_t r = 0; r < rows;) {
        const int64_t taken = r + A <= rows ? A : 1;
        const float* x = x_RI + r * inputs;
        for (int64_t o = first; o < last;) {
          const float* w = tile.data() + (o - first) * inputs;
          float* y = y_RO + r * outputs + o;
          const bool whole = o + B <= last;
          if (taken == A) {
            whole ? block<A, B>(x, w, inputs, outputs, y)
                  : block<A, 1>(x, w, inputs, outputs, y);
          } else {
            whole ? block<1, B>(x, w, inputs, outputs, y)
                  : block<1, 1>(x, w, inputs, outputs, y);
          }
          o += whole ? B : 1;
        }
        r += taken;
      }
    }
  }
}

template <typename Kind>
void grouped_many(const Grouped& w, const float* x_RI, int64_t rows, float* y_RO) {
  auto fill = [&](int64_t first, int64_t last, float* to) {
    thread_local std::vector<float> scale;
    scale.resize(w.groups);
    for (int64_t o = first; o < last; o++)
      widen_row<Kind>(w, o, scale.data(), to + (o - first) * w.inputs());
  };
  many_rows(x_RI, rows, w.inputs(), w.outputs, fill, y_RO);
}

template <typename T>
void float_many(const T* weight_OI, int64_t outputs, int64_t inputs, const float* x_RI,
                int64_t rows, float* y_RO) {
  auto fill = [&](int64_t first, int64_t last, float* to) {
    to_floats(weight_OI + first * inputs, (last - first) * inputs, to);
  };
  many_rows(x_RI, rows, inputs, outputs, fill, y_RO);
}

template <typename T>
void float_rows(const T* weight_OI, int64_t outputs, int64_t inputs, const float* x_RI,
                int64_t rows, float* y_RO) {
  rows > FEW_ROWS ? float_many(weight_OI, outputs, inputs, x_RI, rows, y_RO)
                  : few_float_rows(weight_OI, outputs, inputs, x_RI, rows, y_RO);
}

template <typename Kind, typename T>
void widen_rows(const Grouped& w, T* weight_OI) {
#pragma omp parallel
  {
    std::vector<float> scale(w.groups), row(w.inputs());
#pragma omp for schedule(static)
    for (int64_t o = 0; o < w.outputs; o++) {
      widen_row<Kind>(w, o, scale.data(), row.data());
      for (int64_t i = 0; i < w.inputs(); i++)
        store(weight_OI + o * w.inputs() + i, row[i]);
    }
  }
}

inline int32_t whole_dot(const int8_t* a, const int16_t* b, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; i++) sum += int32_t(a[i]) * int32_t(b[i]);
  return sum;
}

// e to the power of numbers that are not above 0; within 2 units in the last place.
inline Floats power(Floats x) {
  const Floats least = all(-87.0f);
  x = x < least ? least : x;
  const Floats turns = x * 1.44269504f - 0.5f;
  const Ints whole = __builtin_convertvector(turns, Ints);  // towards 0: the nearest
  const Floats n = __builtin_convertvector(whole, Floats);
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * bits<Floats>((whole + 127) << 23);
}

template <typename T>
inline float score_of(const float* query, const T* key, int64_t width) {
  Floats sum = {};
  float rest = 0;
  int64_t h = 0;
  for (; h + LANES <= width; h += LANES) sum += load(query + h) * several(key + h);
  for (; h < width; h++) rest += query[h] * one(key + h);
  return total(sum) + rest;
}

// Scores become weights that sum up to one.
void soften(float* score, int64_t count, float largest) {
  const int64_t full = (count + LANES - 1) / LANES * LANES;
  std::fill(score + count, score + full, -INFINITY);
  Floats sum = {};
  for (int64_t c = 0; c < full; c += LANES) {
    const Floats weight = power(load(score + c) - largest);
    std::memcpy(score + c, &weight, sizeof(weight));
  }
  std::fill(score + count, score + full, 0.0f);
  for (int64_t c = 0; c < full; c += LANES) sum += load(score + c);
  const Floats share = all(1.0f / total(sum));
  for (int64_t c = 0; c < full; c += LANES) {
    const Floats weight = load(score + c) * share;
    std::memcpy(score + c, &weight, sizeof(weight));
  }
}

template <typename T>
inline void mix(const float* weight, const T* value_CH, int64_t first, int64_t last,
                int64_t width, float* out) {
  int64_t h = 0;
  for (; h + 4 * LANES <= width; h += 4 * LANES) {
    Floats sum[4] = {};
    for (int64_t c = first; c < last; c++)
      for (int k = 0; k < 4; k++)
        sum[k] +=
            all(weight[c - first]) * several(value_CH + c * width + h + k * LANES);
    std::memcpy(out + h, sum, sizeof(sum));
  }
  for (; h < width; h++) {
    float sum = 0;
    for (int64_t c = first; c < last; c++)
      sum += weight[c - first] * one(value_CH + c * width + h);
    out[h] = sum;
  }
}

template <typename T>
void attend(const float* query_RNH, const T* key_BKCH, const T* value_BKCH,
            const int64_t* place_R, const float* bias_NC, const int64_t* query_sizes,
            const int64_t* cache_sizes, double cap, int64_t window, int64_t limit,
            float* out) {
  const int64_t rows = query_sizes[0], heads = query_sizes[1], width = query_sizes[2];
  const int64_t slots = cache_sizes[0], kinds = cache_sizes[1], places = cache_sizes[2];
  const int64_t tokens = rows / slots, shared = heads / kinds;
#pragma omp parallel
  {
    std::vector<float> score(places + LANES);
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < rows * heads; task++) {
      const int64_t r = task / heads, n = task % heads, last = place_R[r] + 1;
      if (last > limit) {
        std::fill(out + task * width, out + (task + 1) * width, 0.0f);
        continue;
      }
      const int64_t first = window > 0 ? std::max<int64_t>(0, last - window) : 0;
      const int64_t start = (r / tokens * kinds + n / shared) * places * width;
      const float* query = query_RNH + task * width;
      float largest = -INFINITY;
      for (int64_t c = first; c < last; c++) {
        float s = score_of(query, key_BKCH + start + c * width, width);
        if (cap > 0) s = std::tanh(s / float(cap)) * float(cap);
        if (bias_NC) s += bias_NC[n * places + c];
        score[c - first] = s;
        largest = std::max(largest, s);
      }
      soften(score.data(), last - first, largest);
      mix(score.data(), value_BKCH + start, first, last, width, out + task * width);
    }
  }
}

}  // namespace

extern "C" {

// x float32 [R, I], codes, scales, zero points: float32 [R, O].
AOTITorchError aoti_torch_cpu_lmi_grouped_product(
    AtenTensorHandle x, AtenTensorHandle code, AtenTensorHandle scale,
    AtenTensorHandle* zero, AtenTensorHandle* out) {
  const View x_RI(x);
  const Grouped weight(code, scale, zero);
  const int64_t rows = x_RI.sizes[0];
  if (auto e = make(rows, weight.outputs, aoti_torch_dtype_float32(), out)) return e;
  float* y_RO = View(*out).as<float>();
  const float* from = x_RI.as<float>();
  if (weight.is_packed()) {
    rows > FEW_ROWS ? grouped_many<Packed>(weight, from, rows, y_RO)
                    : grouped_rows<Packed>(weight, from, rows, y_RO);
  } else {
    rows > FEW_ROWS ? grouped_many<Plain>(weight, from, rows, y_RO)
                    : grouped_rows<Plain>(weight, from, rows, y_RO);
  }
  return AOTI_TORCH_SUCCESS;
}

// Codes, scales, zero points: weights [O, I], float32 or bfloat16.
AOTITorchError aoti_torch_cpu_lmi_widened(
    AtenTensorHandle code, AtenTensorHandle scale, AtenTensorHandle* zero,
    int32_t narrow, AtenTensorHandle* out) {
  const Grouped weight(code, scale, zero);
  const int32_t dtype =
      narrow ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  if (auto e = make(weight.outputs, weight.inputs(), dtype, out)) return e;
  const View to(*out);
  if (weight.is_packed()) {
    narrow ? widen_rows<Packed>(weight, to.as<Bfloat16>())
           : widen_rows<Packed>(weight, to.as<float>());
  } else {
    narrow ? widen_rows<Plain>(weight, to.as<Bfloat16>())
           : widen_rows<Plain>(weight, to.as<float>());
  }
  return AOTI_TORCH_SUCCESS;
}

// x float32 [R, I], weights of any float type [O, I]: float32 [R, O].
AOTITorchError aoti_torch_cpu_lmi_float_product(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* out) {
  const View x_RI(x), w(weight);
  const int64_t rows = x_RI.sizes[0], inputs = x_RI.sizes[1], outputs = w.sizes[0];
  if (auto e = make(rows, outputs, aoti_torch_dtype_float32(), out)) return e;
  float* y_RO = View(*out).as<float>();
  const float* from = x_RI.as<float>();
  if (w.dtype == aoti_torch_dtype_float32()) {
    float_rows(w.as<float>(), outputs, inputs, from, rows, y_RO);
  } else if (w.dtype == aoti_torch_dtype_bfloat16()) {
    float_rows(w.as<Bfloat16>(), outputs, inputs, from, rows, y_RO);
  } else {
    float_rows(w.as<Float16>(), outputs, inputs, from, rows, y_RO);
  }
  return AOTI_TORCH_SUCCESS;
}

// Codes of activations, int16 [R, I], and of weights, int8 [O, I]: int32 [R, O].
AOTITorchError aoti_torch_cpu_lmi_whole_product(
    AtenTensorHandle x, AtenTensorHandle code, AtenTensorHandle* out) {
  const View x_RI(x), w(code);
  const int64_t rows = x_RI.sizes[0], inputs = x_RI.sizes[1], outputs = w.sizes[0];
  if (auto e = make(rows, outputs, aoti_torch_dtype_int32(), out)) return e;
  int32_t* y_RO = View(*out).as<int32_t>();
#pragma omp parallel for schedule(static)
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t r = 0; r < rows; r++)
      y_RO[r * outputs + o] = whole_dot(w.as<int8_t>() + o * inputs,
                                        x_RI.as<int16_t>() + r * inputs, inputs);
  return AOTI_TORCH_SUCCESS;
}

// Scaled queries, float32 [R, N, H], caches [B, K, C, H], the rows' places [R], what is
// added to scores [N, C]: float32 [R, N * H]; zeros for places from `limit` on.
AOTITorchError aoti_torch_cpu_lmi_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value,
    AtenTensorHandle place, AtenTensorHandle* bias, double cap, int64_t window,
    int64_t limit, AtenTensorHandle* out) {
  const View q(query), k(key), v(value), p(place);
  const float* added = bias ? View(*bias).as<float>() : nullptr;
  if (auto e = make(q.sizes[0], q.sizes[1] * q.sizes[2], aoti_torch_dtype_float32(),
                    out))
    return e;
  float* to = View(*out).as<float>();
  if (k.dtype == aoti_torch_dtype_float32()) {
    attend(q.as<float>(), k.as<float>(), v.as<float>(), p.as<int64_t>(), added, q.sizes,
           k.sizes, cap, window, limit, to);
  } else {
    attend(q.as<float>(), k.as<Bfloat16>(), v.as<Bfloat16>(), p.as<int64_t>(), added,
           q.sizes, k.sizes, cap, window, limit, to);
  }
  return AOTI_TORCH_SUCCESS;
}
}
