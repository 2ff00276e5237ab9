// Vectors of float over float or bfloat16 memory, on whatever instruction set the file is compiled for.
//
// A loop over n elements takes whole vectors and then one part: load and store take the number of elements that count.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>

namespace redline {

using Vec = at::vec::Vectorized<float>;
using BFloat16 = c10::BFloat16;
constexpr int64_t kWidth = Vec::size();

inline Vec load(const float* from, int64_t count = kWidth) {
  return count == kWidth ? Vec::loadu(from) : Vec::loadu(from, count);
}

inline Vec load(const BFloat16* from, int64_t count = kWidth) {
  BFloat16 part[kWidth] = {};
  if (count < kWidth) {
    std::copy_n(from, count, part);
    from = part;
  }
  Vec out;
  at::vec::load_fp32_from_bf16(from, out);
  return out;
}

inline void store(float* to, const Vec& value, int64_t count = kWidth) {
  if (count == kWidth) {
    value.store(to);
  } else {
    value.store(to, static_cast<int>(count));
  }
}

inline void store(BFloat16* to, const Vec& value, int64_t count = kWidth) {
#if defined(__AVX512BF16__) && defined(CPU_CAPABILITY_AVX512)
  if (count == kWidth) {  // one instruction where at::vec rounds by hand
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
    return;
  }
#endif
  at::vec::convert_float_bfloat16(value, value).store(to, static_cast<int>(count));
}

inline float sum(const Vec& value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, value);
}

inline float largest(const Vec& value) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, value);
}

// Calls f(first, count) for each vector of n elements.
template <typename F>
inline void for_each_vector(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    f(i, kWidth);
  }
  if (i < n) {
    f(i, n - i);
  }
}

// e^x to the precision that results of the pointer's type can hold.
inline Vec exponential(const Vec& x, const BFloat16*) { return x.exp_u20(); }
inline Vec exponential(const Vec& x, const float*) { return x.exp(); }

// Calls f with a value of the C++ type of the tensor's elements.
template <typename F>
void with_type(const at::Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == at::kFloat) {
    f(float());
  } else {
    TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "expected float32 or bfloat16, not ", tensor.scalar_type());
    f(BFloat16());
  }
}

}  // namespace redline
