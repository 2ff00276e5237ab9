// RMSNorm of a sum: the residual stream takes a block's output and is normalised for the next one, in one pass
// (arXiv 1910.07467). Statistics are float32.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "simd.h"

namespace redline {
namespace {

using at::Tensor;

void check_rows(const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.sizes() == like.sizes() && tensor.is_contiguous(),
              "expected contiguous (rows, columns) of one shape");
}

// x (rows, columns), delta like x or none, weight (columns,). Returns x + delta (nothing without delta), the
// normalised rows as `dtype`, and 1 / rms per row.
std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x, const std::optional<Tensor>& delta,
                                                const Tensor& weight, double eps, at::ScalarType dtype) {
  check_rows(x, x);
  const int64_t rows = x.size(0), columns = x.size(1);
  TORCH_CHECK(weight.numel() == columns && weight.is_contiguous(), "weight: one number per column");
  const Tensor total = delta.has_value() ? at::empty_like(x) : x;
  const Tensor out = at::empty({rows, columns}, x.options().dtype(dtype));
  const Tensor scales = at::empty({rows}, x.options().dtype(at::kFloat));
  const Tensor& added = delta.has_value() ? *delta : x;
  check_rows(added, x);
  with_type(x, [&](auto x0) {
    with_type(added, [&](auto d0) {
      with_type(weight, [&](auto w0) {
        with_type(out, [&](auto o0) {
          using X = decltype(x0);
          using O = decltype(o0);
          const X* from = static_cast<const X*>(x.data_ptr());
          const auto* more = static_cast<const decltype(d0)*>(added.data_ptr());
          const auto* gain = static_cast<const decltype(w0)*>(weight.data_ptr());
          X* sums = static_cast<X*>(total.data_ptr());
          O* to = static_cast<O*>(out.data_ptr());
          float* scale = scales.data_ptr<float>();
          at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
              const int64_t at = row * columns;
              Vec squares(0.f);
              for_each_vector(columns, [&](int64_t i, int64_t count) {
                Vec value = load(from + at + i, count);
                if (delta.has_value()) {
                  store(sums + at + i, value + load(more + at + i, count), count);
                  value = load(sums + at + i, count);  // as it is stored
                }
                squares = at::vec::fmadd(value, value, squares);
              });
              scale[row] = 1.f / std::sqrt(sum(squares) / static_cast<float>(columns) + static_cast<float>(eps));
              const Vec factor(scale[row]);
              for_each_vector(columns, [&](int64_t i, int64_t count) {
                store(to + at + i, load(sums + at + i, count) * factor * load(gain + i, count), count);
              });
            }
          });
        });
      });
    });
  });
  return {delta.has_value() ? total : at::empty({0}, x.options()), out, scales};
}

// Gradients of x, of delta (nothing where it is that of x, type and all) and of weight, from those of both results.
std::tuple<Tensor, Tensor, Tensor> add_rms_norm_backward(const std::optional<Tensor>& total_grad, const Tensor& grad,
                                                         const Tensor& total, const Tensor& weight,
                                                         const Tensor& scales, std::optional<at::ScalarType> delta) {
  check_rows(grad, total);
  TORCH_CHECK(weight.numel() == total.size(1) && weight.is_contiguous(), "weight: one number per column");
  TORCH_CHECK(scales.numel() == total.size(0) && scales.is_contiguous() && scales.scalar_type() == at::kFloat,
              "scales: one float32 per row");
  const int64_t rows = total.size(0), columns = total.size(1);
  const Tensor x_grad = at::empty_like(total);
  const bool differs = delta.has_value() && *delta != total.scalar_type();
  const Tensor delta_grad = differs ? at::empty_like(total, total.options().dtype(*delta)) : at::empty({0}, total.options());
  // One row of sums per stretch of rows: the same sums in the same order whichever thread takes a stretch.
  const int64_t stretches = std::min<int64_t>(at::get_num_threads(), std::max<int64_t>(rows, 1));
  const Tensor weight_sums = at::zeros({stretches, columns}, total.options().dtype(at::kFloat));
  if (total_grad.has_value()) {
    check_rows(*total_grad, total);
    TORCH_CHECK(total_grad->scalar_type() == total.scalar_type(), "gradient of the sum: not of its type");
  }
  with_type(total, [&](auto x0) {
    with_type(grad, [&](auto g0) {
      with_type(weight, [&](auto w0) {
        with_type(delta_grad, [&](auto d0) {
          using X = decltype(x0);
          using D = decltype(d0);
          const X* values = static_cast<const X*>(total.data_ptr());
          const X* more = total_grad.has_value() ? static_cast<const X*>(total_grad->data_ptr()) : nullptr;
          const auto* grads = static_cast<const decltype(g0)*>(grad.data_ptr());
          const auto* gain = static_cast<const decltype(w0)*>(weight.data_ptr());
          const float* scale = scales.data_ptr<float>();
          X* to = static_cast<X*>(x_grad.data_ptr());
          D* to_delta = differs ? static_cast<D*>(delta_grad.data_ptr()) : nullptr;
          at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
            for (int64_t stretch = first; stretch < last; ++stretch) {
              float* weight_sum = weight_sums.data_ptr<float>() + stretch * columns;
              for (int64_t row = rows * stretch / stretches; row < rows * (stretch + 1) / stretches; ++row) {
                const int64_t at = row * columns;
                const Vec factor(scale[row]);
                Vec products(0.f);
                for_each_vector(columns, [&](int64_t i, int64_t count) {
                  const Vec normed = load(values + at + i, count) * factor, g = load(grads + at + i, count);
                  store(weight_sum + i, at::vec::fmadd(normed, g, load(weight_sum + i, count)), count);
                  products = at::vec::fmadd(normed, g * load(gain + i, count), products);
                });
                const Vec mean(sum(products) / static_cast<float>(columns));
                for_each_vector(columns, [&](int64_t i, int64_t count) {
                  const Vec normed = load(values + at + i, count) * factor;
                  Vec value = factor * (load(grads + at + i, count) * load(gain + i, count) - normed * mean);
                  if (more != nullptr) {
                    value = value + load(more + at + i, count);
                  }
                  store(to + at + i, value, count);
                  if (to_delta != nullptr) {
                    store(to_delta + at + i, value, count);
                  }
                });
              }
            }
          });
        });
      });
    });
  });
  return {x_grad, delta_grad, weight_sums.sum(0).to(weight.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(redline, CPU, m) {
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("add_rms_norm_backward", &add_rms_norm_backward);
}

}  // namespace redline
