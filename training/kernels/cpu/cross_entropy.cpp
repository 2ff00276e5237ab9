// Cross-entropy of rows of logits, whose gradients take their place. Sums are float32.
//
// The formulas, with label smoothing and z-loss, are those of training/loss/linear_cross_entropy.py.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "simd.h"

namespace redline {
namespace {

using at::Tensor;

struct Terms {
  float smoothing, z_loss, scale;
};

// The loss of one row; its logits become their gradients where those are wanted.
template <typename T>
float differentiate(T* logits, int64_t vocab_size, int64_t label, const Terms& terms, bool wanted) {
  Vec peak(-std::numeric_limits<float>::infinity());
  Vec sums(0.f);
  for_each_vector(vocab_size, [&](int64_t i, int64_t count) {
    Vec value = load(logits + i, count);
    sums = sums + value;
    if (count < kWidth) {
      value = Vec::set(peak, value, count);
    }
    peak = at::vec::maximum(peak, value);
  });
  const float highest = largest(peak);
  Vec totals(0.f);
  for_each_vector(vocab_size, [&](int64_t i, int64_t count) {
    Vec weight = exponential(load(logits + i, count) - Vec(highest), logits);
    if (count < kWidth) {
      weight = Vec::set(Vec(0.f), weight, count);
    }
    totals = totals + weight;
  });
  const float log_sum = highest + std::log(sum(totals));
  const float label_logit = static_cast<float>(logits[label]);
  float loss = (1.f - terms.smoothing) * (log_sum - label_logit) + terms.z_loss * log_sum * log_sum;
  if (terms.smoothing != 0.f) {
    loss += terms.smoothing * (log_sum - sum(sums) / static_cast<float>(vocab_size));
  }
  if (wanted) {
    const float factor = (1.f + 2.f * terms.z_loss * log_sum) * terms.scale;
    const float floor = terms.smoothing / static_cast<float>(vocab_size) * terms.scale;
    const float at_label =
        std::exp(label_logit - log_sum) * factor - floor - (1.f - terms.smoothing) * terms.scale;
    for_each_vector(vocab_size, [&](int64_t i, int64_t count) {
      const Vec share = exponential(load(logits + i, count) - Vec(log_sum), logits);
      store(logits + i, share * Vec(factor) - Vec(floor), count);
    });
    logits[label] = T(at_label);
  }
  return loss * terms.scale;
}

// logits (rows, vocab_size) with dense rows; labels (rows,), -100 has no loss. Returns the losses, (rows,) float32, times
// scale; with `wanted` the logits become the gradients of their sum.
Tensor cross_entropy_(const Tensor& logits, const Tensor& labels, double smoothing, double z_loss, double scale,
                      bool wanted) {
  TORCH_CHECK(logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) <= 1),
              "logits: (rows, vocab_size) with dense rows");
  const int64_t rows = logits.size(0), vocab_size = logits.size(1);
  TORCH_CHECK(labels.numel() == rows && labels.is_contiguous() && labels.scalar_type() == at::kLong,
              "labels: one int64 per row");
  const int64_t* label = labels.data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK(label[row] == -100 || (label[row] >= 0 && label[row] < vocab_size), "label ", label[row], " of row ", row,
                " is outside the vocabulary of ", vocab_size);
  }
  const Terms terms{static_cast<float>(smoothing), static_cast<float>(z_loss), static_cast<float>(scale)};
  const Tensor losses = at::empty({rows}, logits.options().dtype(at::kFloat));
  float* loss = losses.data_ptr<float>();
  with_type(logits, [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* at = static_cast<T*>(logits.data_ptr()) + row * logits.stride(0);
        if (label[row] >= 0) {
          loss[row] = differentiate(at, vocab_size, label[row], terms, wanted);
          continue;
        }
        loss[row] = 0.f;
        if (wanted) {
          std::fill_n(at, vocab_size, T(0.f));
        }
      }
    });
  });
  return losses;
}

}  // namespace

TORCH_LIBRARY_IMPL(redline, CPU, m) { m.impl("cross_entropy_", &cross_entropy_); }

}  // namespace redline
