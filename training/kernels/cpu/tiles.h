// Products of small tiles: C (M, N) float = or += A (M, K) B (K, N), on libtorch's micro-kernel.
//
// Tiles are bfloat16 where the CPU multiplies it (AVX512-BF16, AMX): B then lies in pairs of rows, element (k, n) at
// [k / 2][n][k % 2], "VNNI". Elsewhere tiles are float and B lies as it is.
//
// libtorch generates machine code for each (M, N, K, strides) it meets, and keeps it: callers use few shapes.
#pragma once

#include <ATen/native/CPUBlas.h>

#include "simd.h"

namespace redline {

inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
}

inline void multiply(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t lda, const BFloat16* b, int64_t ldb,
                     float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/true);
}

// To be called by each thread that multiplied: AMX keeps tile registers configured until then.
inline void release(const float*) {}
inline void release(const BFloat16*) { at::native::cpublas::brgemm_release(/*is_vnni=*/true); }

// B = sourceᵀ of source (n, k) with row stride `stride`: [k][n].
inline void pack_transposed(const float* source, int64_t stride, int64_t n, int64_t k, float* to) {
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      to[i * n + row] = source[row * stride + i];
    }
  }
}

// The same in pairs: [k / 2][n][2]. k is even.
inline void pack_transposed(const BFloat16* source, int64_t stride, int64_t n, int64_t k, BFloat16* to) {
  for (int64_t row = 0; row < n; ++row) {
    const BFloat16* from = source + row * stride;
    for (int64_t i = 0; i < k; i += 2) {
      BFloat16* pair = to + (i / 2 * n + row) * 2;
      pair[0] = from[i];
      pair[1] = from[i + 1];
    }
  }
}

// B = source (k, n) with row stride `stride`: [k][n].
inline void pack_rows(const float* source, int64_t stride, int64_t k, int64_t n, float* to) {
  for (int64_t row = 0; row < k; ++row) {
    std::copy_n(source + row * stride, n, to + row * n);
  }
}

// Two rows of n elements in turns: even's first, odd's first, even's second, ...
inline void interleave(const BFloat16* even, const BFloat16* odd, int64_t n, BFloat16* to) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  for (; i + 16 <= n; i += 16) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + i));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd + i));
    const __m512i both =
        _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    _mm512_storeu_si512(to + 2 * i, both);
  }
#endif
  for (; i < n; ++i) {
    to[2 * i] = even[i];
    to[2 * i + 1] = odd[i];
  }
}

// The same in pairs: [k / 2][n][2]. k is even.
inline void pack_rows(const BFloat16* source, int64_t stride, int64_t k, int64_t n, BFloat16* to) {
  for (int64_t row = 0; row < k; row += 2) {
    interleave(source + row * stride, source + (row + 1) * stride, n, to + row * n);
  }
}

// to (columns, rows) with row stride to_stride = sourceᵀ of source (rows, columns).
template <typename T>
inline void transpose(const T* source, int64_t stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  constexpr int64_t kBlock = 16;  // both sides of a block stay in the first-level cache
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < columns; c0 += kBlock) {
      const int64_t r1 = std::min(rows, r0 + kBlock), c1 = std::min(columns, c0 + kBlock);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) {
          to[c * to_stride + r] = source[r * stride + c];
        }
      }
    }
  }
}

}  // namespace redline
