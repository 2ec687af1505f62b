// What one core can do at most, in 1e9 floating point operations a second: multiply-adds from
// registers, and multiply-adds that load one operand each, from L1 and from L2. The kernels' inner
// loop is of the second kind, because every live weight multiplies a different line of the input.
#include <ctime>
#include <cstdio>
#include <vector>
#include <algorithm>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#else
constexpr int WIDTH = 8;
#endif
constexpr int SUMS = 12, REPEATS = 15;
typedef float Vector __attribute__((vector_size(4 * WIDTH)));

static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// The median rate of a loop that does `operations` each time.
template <class Loop> static double rate(double operations, Loop loop) {
  std::vector<double> seconds;
  for (int i = 0; i < REPEATS; i++) {
    const double start = now();
    loop();
    seconds.push_back(now() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + REPEATS / 2, seconds.end());
  return operations / seconds[REPEATS / 2] / 1e9;
}

// Empty assembler statements keep the compiler from doing work once for all sums, or for all steps.
template <class T> static void start(T (&sums)[SUMS]) {
  for (T& sum : sums) {
    sum = T{};
    asm volatile("" : "+v"(sum));
  }
}

static double from_registers(Vector* sink) {
  const int steps = 400000;
  return rate(2.0 * WIDTH * SUMS * steps, [&] {
    Vector sums[SUMS], factor = sink[0];
    start(sums);
    for (int i = 0; i < steps; i++) {
      asm volatile("" : "+v"(factor));
      for (int j = 0; j < SUMS; j++) sums[j] += factor * factor;
    }
    for (int j = 0; j < SUMS; j++) sink[j] += sums[j];
  });
}

static double from_memory(Vector* sink, int bytes) {
  const int lines = bytes / (int)sizeof(Vector) / SUMS * SUMS, passes = 40000000 / lines / WIDTH;
  std::vector<Vector> data(lines);
  return rate(2.0 * WIDTH * lines * passes, [&] {
    Vector sums[SUMS];
    const Vector factor = sink[0];
    start(sums);
    for (int i = 0; i < passes; i++)
      for (int line = 0; line < lines; line += SUMS) {
        const Vector* from = data.data() + line;
        asm volatile("" : "+r"(from));
        for (int j = 0; j < SUMS; j++) sums[j] += factor * from[j];
      }
    for (int j = 0; j < SUMS; j++) sink[j] += sums[j];
  });
}

#ifdef __AVX512BF16__
// One of the two products of each pair is of use: the kernels have one weight for a whole line.
static double dot_products(Vector* sink) {
  const int steps = 400000;
  return rate(2.0 * WIDTH * SUMS * steps, [&] {
    __m512 sums[SUMS];
    start(sums);
    __m512bh factor = (__m512bh)_mm512_set1_epi32(0x3c24);
    for (int i = 0; i < steps; i++) {
      asm volatile("" : "+v"(factor));
      for (int j = 0; j < SUMS; j++) sums[j] = _mm512_dpbf16_ps(sums[j], factor, factor);
    }
    for (int j = 0; j < SUMS; j++) sink[j] += (Vector)sums[j];
  });
}
#endif

int main() {
  Vector sink[SUMS] = {};
  printf("multiply-adds from registers\t%.1f\n", from_registers(sink));
  printf("with a load from L1 (16 kB)\t%.1f\n", from_memory(sink, 16 << 10));
  printf("with a load from L2 (512 kB)\t%.1f\n", from_memory(sink, 512 << 10));
#ifdef __AVX512BF16__
  printf("bfloat16 dot products, useful half\t%.1f\n", dot_products(sink));
#endif
  return sink[0][0] == 1.5f;
}
