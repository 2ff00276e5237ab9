// silu(gate) * up and its gradients, in one pass each (arXiv 2002.05202).
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "simd.h"

namespace redline {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 16;  // rows

void check(const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.sizes() == like.sizes() && (tensor.stride(1) == 1 || tensor.size(1) <= 1) &&
                  tensor.scalar_type() == like.scalar_type(),
              "expected (rows, columns) of one shape and type with dense rows");
}

// gate and up (rows, columns) with dense rows.
Tensor swiglu(const Tensor& gate, const Tensor& up) {
  check(gate, gate);
  check(up, gate);
  const int64_t columns = gate.size(1);
  const Tensor out = at::empty(gate.sizes(), gate.options());
  with_type(gate, [&](auto t) {
    using T = decltype(t);
    const T *gates = static_cast<const T*>(gate.data_ptr()), *ups = static_cast<const T*>(up.data_ptr());
    T* to = static_cast<T*>(out.data_ptr());
    at::parallel_for(0, gate.size(0), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *g = gates + row * gate.stride(0), *u = ups + row * up.stride(0);
        for_each_vector(columns, [&](int64_t i, int64_t count) {
          const Vec a = load(g + i, count);
          store(to + row * columns + i, a * load(u + i, count) / (Vec(1.f) + exponential(Vec(0.f) - a, g)), count);
        });
      }
    });
  });
  return out;
}

void swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, const Tensor& gate_grad,
                     const Tensor& up_grad) {
  for (const Tensor* one : {&gate, &grad, &up, &gate_grad, &up_grad}) {
    check(*one, gate);
  }
  with_type(gate, [&](auto t) {
    using T = decltype(t);
    const T *gates = static_cast<const T*>(gate.data_ptr()), *ups = static_cast<const T*>(up.data_ptr());
    const T* grads = static_cast<const T*>(grad.data_ptr());
    T *to_gates = static_cast<T*>(gate_grad.data_ptr()), *to_ups = static_cast<T*>(up_grad.data_ptr());
    at::parallel_for(0, gate.size(0), kGrain, [&](int64_t begin, int64_t end) {
      const Vec one(1.f);
      for (int64_t row = begin; row < end; ++row) {
        const T *g = gates + row * gate.stride(0), *u = ups + row * up.stride(0), *d = grads + row * grad.stride(0);
        T *to_gate = to_gates + row * gate_grad.stride(0), *to_up = to_ups + row * up_grad.stride(0);
        for_each_vector(gate.size(1), [&](int64_t i, int64_t count) {
          const Vec a = load(g + i, count), b = load(u + i, count), c = load(d + i, count);
          const Vec sigmoid = one / (one + exponential(Vec(0.f) - a, g));
          store(to_up + i, c * a * sigmoid, count);
          store(to_gate + i, c * b * sigmoid * (one + a * (one - sigmoid)), count);
        });
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(redline, CPU, m) {
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_backward", &swiglu_backward);
}

}  // namespace redline
