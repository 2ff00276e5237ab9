// Causal attention over documents of any length, forward and backward, without scores in memory.
//
// A document's queries see its own keys only, up to and including their own position, and at most `window` of them.
// Grouped heads share keys and values as they are. Rotary angles, where given, are applied while rows are read, and
// taken back while gradients are written. Sums are float32 throughout (FlashAttention 2, arXiv 2307.08691).
//
// One task is one document of one key-value head. Threads take tasks from the costliest down; each result belongs to one
// task, so it does not depend on which thread computes it.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <type_traits>
#include <vector>

#include "tiles.h"

namespace redline {
namespace {

using at::Tensor;

constexpr int64_t kBlock = 64;   // queries of a tile, and the unit that keys are padded to
constexpr int64_t kChunk = 512;  // keys whose scores are held at once
constexpr float kNone = -std::numeric_limits<float>::infinity();

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// (rows, tokens, heads, head_dim) with dense head_dim.
template <typename T>
struct Rows {
  T* data;
  int64_t row, token, head;

  explicit Rows(const Tensor& tensor)
      : data(static_cast<T*>(tensor.data_ptr())), row(tensor.stride(0)), token(tensor.stride(1)),
        head(tensor.stride(2)) {}
  T* at(int64_t r, int64_t t, int64_t h) const { return data + r * row + t * token + h * head; }
};

// cos and sin of the rotary angles, (rows or 1, tokens, head_dim) float32, of which the first half is read.
struct Angles {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t row = 0, token = 0;

  Angles(const std::optional<Tensor>& c, const std::optional<Tensor>& s) {
    if (c.has_value()) {
      cos = c->data_ptr<float>();
      sin = s->data_ptr<float>();
      row = c->size(0) == 1 ? 0 : c->stride(0);
      token = c->stride(1);
    }
  }
  int64_t at(int64_t r, int64_t t) const { return r * row + t * token; }
};

struct Shape {
  int64_t tokens, heads, kv_heads, head_dim, window;
  float scale;
  int64_t group() const { return heads / kv_heads; }
};

struct Task {
  int64_t row, first, length;  // of the document
  int64_t kv_head, head, heads;  // and its query heads of this task
  int64_t part;  // which of the parts that a key-value head's gradients are summed from
};

// Buffers of one thread, kept from call to call: memory that is freed and taken again costs page faults.
template <typename T>
T* scratch(int slot, int64_t count) {
  thread_local std::vector<std::vector<uint8_t>> buffers(16);
  auto& buffer = buffers[slot];
  const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
  if (buffer.size() < bytes) {
    buffer.resize(bytes);
  }
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64);
}

template <typename From, typename To>
void copy_row(const From* from, To* to, int64_t n) {
  for_each_vector(n, [&](int64_t i, int64_t count) { store(to + i, load(from + i, count), count); });
}

// Rotates the pairs (i, i + head_dim / 2) by the angles of one position; direction -1 rotates back.
template <typename From, typename To>
void rotate_row(const From* from, To* to, const float* cos, const float* sin, float direction, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for_each_vector(half, [&](int64_t i, int64_t count) {
    const Vec a = load(from + i, count), b = load(from + half + i, count);
    const Vec c = load(cos + i, count), s = load(sin + i, count) * Vec(direction);
    store(to + i, a * c - b * s, count);
    store(to + half + i, b * c + a * s, count);
  });
}

template <typename From, typename To>
void copy_or_rotate(const From* from, To* to, const Angles& angles, int64_t row, int64_t token, float direction,
                    int64_t head_dim) {
  if (angles.cos == nullptr) {
    copy_row(from, to, head_dim);
  } else {
    const int64_t at = angles.at(row, token);
    rotate_row(from, to, angles.cos + at, angles.sin + at, direction, head_dim);
  }
}

// `count` rows from token `first` on, then zeros up to `padded` rows.
template <typename T, typename E>
void read_rows(const Rows<T>& source, const Angles& angles, int64_t row, int64_t first, int64_t head, int64_t count,
               int64_t padded, int64_t head_dim, E* to) {
  for (int64_t i = 0; i < count; ++i) {
    copy_or_rotate(source.at(row, first + i, head), to + i * head_dim, angles, row, first + i, 1.f, head_dim);
  }
  std::fill(to + count * head_dim, to + padded * head_dim, E(0.f));
}

const Angles kNoAngles{std::nullopt, std::nullopt};

int64_t first_key(const Shape& shape, int64_t query) {
  return shape.window > 0 ? std::max<int64_t>(0, query - shape.window + 1) : 0;
}

// ---- forward ----

// One row of scores to weights e^(scale (score - highest)); keys outside [low, high) get 0. Returns what the sums so far
// are to be multiplied with.
template <typename E>
float weigh(const float* scores, E* weights, int64_t n, int64_t low, int64_t high, float scale, float& highest,
            float& total) {
  if (low >= high) {
    std::fill(weights, weights + n, E(0.f));
    return 1.f;
  }
  Vec peak(kNone);
  float tail = kNone;
  int64_t j = low;
  for (; j + kWidth <= high; j += kWidth) {
    peak = at::vec::maximum(peak, Vec::loadu(scores + j));
  }
  for (; j < high; ++j) {
    tail = std::max(tail, scores[j]);
  }
  const float before = highest;
  highest = std::max({before, tail, largest(peak)});
  const Vec shift(-highest * scale), factor(scale);
  Vec sums(0.f);
  std::fill(weights, weights + low, E(0.f));
  for (j = low; j < high; j += kWidth) {
    const int64_t count = std::min(kWidth, high - j);
    Vec weight = exponential(at::vec::fmadd(load(scores + j, count), factor, shift), weights);
    if (count < kWidth) {
      weight = Vec::set(Vec(0.f), weight, count);
    }
    sums = sums + weight;
    store(weights + j, weight, count);
  }
  std::fill(weights + high, weights + n, E(0.f));
  const float correction = before == kNone ? 0.f : std::exp((before - highest) * scale);
  total = total * correction + sum(sums);
  return correction;
}

template <typename T, typename E>
void run_forward(const Shape& shape, const Task& task, const Rows<T>& query, const Rows<T>& key, const Rows<T>& value,
                 const Angles& angles, const Rows<T>& out, float* log_sums) {
  const int64_t dim = shape.head_dim, padded = round_up(task.length, kBlock);
  E* rows = scratch<E>(0, padded * dim);
  E* keys = scratch<E>(1, padded * dim);    // transposed, block by block
  E* values = scratch<E>(2, padded * dim);  // packed
  E* queries = scratch<E>(3, kBlock * dim);
  E* weights = scratch<E>(4, kBlock * kChunk);
  float* scores = scratch<float>(5, kBlock * kChunk);
  float* sums = scratch<float>(6, kBlock * dim);
  float highest[kBlock], total[kBlock];

  read_rows(key, angles, task.row, task.first, task.kv_head, task.length, padded, dim, rows);
  for (int64_t j = 0; j < padded; j += kBlock) {
    pack_transposed(rows + j * dim, dim, kBlock, dim, keys + j * dim);
  }
  read_rows(value, kNoAngles, task.row, task.first, task.kv_head, task.length, padded, dim, rows);
  pack_rows(rows, dim, padded, dim, values);

  for (int64_t head = task.head; head < task.head + task.heads; ++head) {
    for (int64_t i0 = 0; i0 < task.length; i0 += kBlock) {
      const int64_t count = std::min(kBlock, task.length - i0);
      read_rows(query, angles, task.row, task.first + i0, head, count, kBlock, dim, queries);
      std::fill_n(highest, kBlock, kNone);
      std::fill_n(total, kBlock, 0.f);
      const int64_t begin = first_key(shape, i0) / kBlock * kBlock, end = i0 + kBlock;
      for (int64_t c0 = begin; c0 < end; c0 += kChunk) {
        const int64_t n = std::min(kChunk, end - c0);
        for (int64_t j = 0; j < n; j += kBlock) {
          multiply(kBlock, kBlock, dim, queries, dim, keys + (c0 + j) * dim, kBlock, scores + j, kChunk, false);
        }
        for (int64_t i = 0; i < kBlock; ++i) {
          const int64_t low = std::max<int64_t>(0, first_key(shape, i0 + i) - c0);
          const int64_t high = std::min(n, i0 + i + 1 - c0);
          const float correction =
              weigh(scores + i * kChunk, weights + i * kChunk, n, low, high, shape.scale, highest[i], total[i]);
          if (c0 > begin && correction != 1.f) {
            for_each_vector(dim, [&](int64_t d, int64_t part) {
              store(sums + i * dim + d, load(sums + i * dim + d, part) * Vec(correction), part);
            });
          }
        }
        multiply(kBlock, dim, n, weights, kChunk, values + c0 * dim, dim, sums, dim, c0 > begin);
      }
      for (int64_t i = 0; i < count; ++i) {
        const Vec share(1.f / total[i]);
        T* to = out.at(task.row, task.first + i0 + i, head);
        for_each_vector(dim, [&](int64_t d, int64_t part) {
          store(to + d, load(sums + i * dim + d, part) * share, part);
        });
        log_sums[(task.row * shape.heads + head) * shape.tokens + task.first + i0 + i] =
            highest[i] * shape.scale + std::log(total[i]);
      }
    }
  }
  release(queries);
}

// ---- backward ----

// Weights and gradients of scores of one key for kBlock queries, of which [low, high) see it.
template <typename E>
void differentiate(const float* scores, const float* grads, const float* negative_log_sums, const float* deltas,
                   float scale, int64_t low, int64_t high, E* weights, E* score_grads) {
  const Vec factor(scale);
  for (int64_t i = 0; i < kBlock; i += kWidth) {
    Vec weight = exponential(
        at::vec::fmadd(Vec::loadu(scores + i), factor, Vec::loadu(negative_log_sums + i)), weights);
    Vec grad = weight * factor * (Vec::loadu(grads + i) - Vec::loadu(deltas + i));
    if (i < low || i + kWidth > high) {
      float kept[kWidth], kept_grads[kWidth];
      weight.store(kept);
      grad.store(kept_grads);
      for (int64_t lane = 0; lane < kWidth; ++lane) {
        if (i + lane < low || i + lane >= high) {
          kept[lane] = kept_grads[lane] = 0.f;
        }
      }
      weight = Vec::loadu(kept);
      grad = Vec::loadu(kept_grads);
    }
    store(weights + i, weight);
    store(score_grads + i, grad);
  }
}

template <typename T>
struct Gradients {
  Rows<T> query, key, value;
  float* key_parts;  // (parts, rows, tokens, kv_heads, head_dim) where several tasks share a key-value head, else null
  float* value_parts;
  int64_t part_size;
};

template <typename T, typename E>
void run_backward(const Shape& shape, const Task& task, const Rows<T>& query, const Rows<T>& key,
                  const Rows<T>& value, const Angles& angles, const Rows<T>& out, const float* log_sums,
                  const Rows<T>& grad, const Gradients<T>& to) {
  const int64_t dim = shape.head_dim, padded = round_up(task.length, kBlock);
  E* keys = scratch<E>(0, padded * dim);
  E* keys_transposed = scratch<E>(1, round_up(padded, kChunk) * dim);  // chunk by chunk, (head_dim, kChunk) each
  E* values = scratch<E>(2, padded * dim);
  E* queries = scratch<E>(3, kBlock * dim);
  E* queries_transposed = scratch<E>(4, kBlock * dim);
  E* queries_packed = scratch<E>(5, kBlock * dim);
  E* grads = scratch<E>(6, kBlock * dim);
  E* grads_transposed = scratch<E>(7, kBlock * dim);
  E* grads_packed = scratch<E>(8, kBlock * dim);
  E* weights = scratch<E>(9, kChunk * kBlock);
  E* score_grads = scratch<E>(10, kChunk * kBlock);
  E* score_grads_packed = scratch<E>(11, kChunk * kBlock);
  float* scores = scratch<float>(12, kChunk * kBlock);
  float* weight_grads = scratch<float>(13, kChunk * kBlock);
  float* query_grads = scratch<float>(14, dim * kBlock + dim);  // (head_dim, kBlock), and one row
  float* key_grads = scratch<float>(15, 2 * padded * dim);
  float* value_grads = key_grads + padded * dim;
  float* row_grads = query_grads + dim * kBlock;
  float negative_log_sums[kBlock], deltas[kBlock];

  read_rows(key, angles, task.row, task.first, task.kv_head, task.length, padded, dim, keys);
  read_rows(value, kNoAngles, task.row, task.first, task.kv_head, task.length, padded, dim, values);
  for (int64_t c0 = 0; c0 < padded; c0 += kChunk) {
    transpose(keys + c0 * dim, dim, std::min(kChunk, padded - c0), dim, keys_transposed + c0 * dim, kChunk);
  }
  std::fill_n(key_grads, 2 * padded * dim, 0.f);

  for (int64_t head = task.head; head < task.head + task.heads; ++head) {
    for (int64_t i0 = 0; i0 < task.length; i0 += kBlock) {
      const int64_t count = std::min(kBlock, task.length - i0);
      read_rows(query, angles, task.row, task.first + i0, head, count, kBlock, dim, queries);
      read_rows(grad, kNoAngles, task.row, task.first + i0, head, count, kBlock, dim, grads);
      for (int64_t i = 0; i < kBlock; ++i) {
        negative_log_sums[i] = kNone;  // a query that is none weighs nothing
        deltas[i] = 0.f;
        if (i < count) {
          const T* o = out.at(task.row, task.first + i0 + i, head);
          const T* g = grad.at(task.row, task.first + i0 + i, head);
          Vec products(0.f);
          for_each_vector(dim, [&](int64_t d, int64_t part) {
            products = at::vec::fmadd(load(o + d, part), load(g + d, part), products);
          });
          deltas[i] = sum(products);
          negative_log_sums[i] =
              -log_sums[(task.row * shape.heads + head) * shape.tokens + task.first + i0 + i];
        }
      }
      pack_transposed(queries, dim, kBlock, dim, queries_transposed);
      pack_rows(queries, dim, kBlock, dim, queries_packed);
      pack_transposed(grads, dim, kBlock, dim, grads_transposed);
      pack_rows(grads, dim, kBlock, dim, grads_packed);
      // Chunks begin where those of the transposed keys do.
      const int64_t begin = first_key(shape, i0) / kBlock * kBlock, end = i0 + kBlock;
      for (int64_t c0 = begin; c0 < end;) {
        const int64_t n = std::min((c0 / kChunk + 1) * kChunk, end) - c0;
        multiply(n, kBlock, dim, keys + c0 * dim, dim, queries_transposed, kBlock, scores, kBlock, false);
        multiply(n, kBlock, dim, values + c0 * dim, dim, grads_transposed, kBlock, weight_grads, kBlock, false);
        for (int64_t j = 0; j < n; ++j) {
          const int64_t low = std::max<int64_t>(0, c0 + j - i0);
          const int64_t high =
              shape.window > 0 ? std::clamp<int64_t>(c0 + j - i0 + shape.window, 0, kBlock) : kBlock;
          differentiate(scores + j * kBlock, weight_grads + j * kBlock, negative_log_sums, deltas, shape.scale, low,
                        high, weights + j * kBlock, score_grads + j * kBlock);
        }
        multiply(n, dim, kBlock, weights, kBlock, grads_packed, dim, value_grads + c0 * dim, dim, true);
        multiply(n, dim, kBlock, score_grads, kBlock, queries_packed, dim, key_grads + c0 * dim, dim, true);
        pack_rows(score_grads, kBlock, n, kBlock, score_grads_packed);
        const E* chunk = keys_transposed + c0 / kChunk * kChunk * dim + c0 % kChunk;
        multiply(dim, kBlock, n, chunk, kChunk, score_grads_packed, kBlock, query_grads, kBlock, c0 > begin);
        c0 += n;
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t d = 0; d < dim; ++d) {
          row_grads[d] = query_grads[d * kBlock + i];
        }
        const int64_t token = task.first + i0 + i;
        copy_or_rotate(row_grads, to.query.at(task.row, token, head), angles, task.row, token, -1.f, dim);
      }
    }
  }
  for (int64_t t = 0; t < task.length; ++t) {
    const int64_t token = task.first + t;
    if (to.key_parts == nullptr) {
      copy_or_rotate(key_grads + t * dim, to.key.at(task.row, token, task.kv_head), angles, task.row, token, -1.f, dim);
      copy_row(value_grads + t * dim, to.value.at(task.row, token, task.kv_head), dim);
    } else {
      const int64_t at =
          task.part * to.part_size + ((task.row * shape.tokens + token) * shape.kv_heads + task.kv_head) * dim;
      copy_row(key_grads + t * dim, to.key_parts + at, dim);
      copy_row(value_grads + t * dim, to.value_parts + at, dim);
    }
  }
  release(queries);
}

// Sums the parts of each document's key and value gradients, in order.
template <typename T>
void add_parts(const Shape& shape, const std::vector<Task>& tasks, const Angles& angles, const Gradients<T>& to) {
  std::vector<Task> wholes;
  for (const Task& task : tasks) {
    if (task.part == 0) {
      wholes.push_back(task);
    }
  }
  const int64_t dim = shape.head_dim;
  at::parallel_for(0, static_cast<int64_t>(wholes.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(dim);
    const auto add = [&](const float* parts, int64_t at) {
      copy_row(parts + at, row.data(), dim);
      for (int64_t part = 1; part < shape.group(); ++part) {
        const float* other = parts + part * to.part_size + at;
        for_each_vector(dim, [&](int64_t d, int64_t count) {
          store(row.data() + d, load(row.data() + d, count) + load(other + d, count), count);
        });
      }
    };
    for (int64_t w = begin; w < end; ++w) {
      const Task& task = wholes[w];
      for (int64_t token = task.first; token < task.first + task.length; ++token) {
        const int64_t at = ((task.row * shape.tokens + token) * shape.kv_heads + task.kv_head) * dim;
        add(to.key_parts, at);
        copy_or_rotate(row.data(), to.key.at(task.row, token, task.kv_head), angles, task.row, token, -1.f, dim);
        add(to.value_parts, at);
        copy_row(row.data(), to.value.at(task.row, token, task.kv_head), dim);
      }
    }
  });
}

// ---- the operators ----

Shape check(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& cos,
            const std::optional<Tensor>& sin, const Tensor& starts, const Tensor& lengths, double scale,
            int64_t window) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, "query, key, value: (rows, tokens, heads, dim)");
  TORCH_CHECK(key.sizes() == value.sizes(), "key and value differ in shape");
  const int64_t rows = query.size(0), tokens = query.size(1), heads = query.size(2), dim = query.size(3);
  TORCH_CHECK(key.size(0) == rows && key.size(1) == tokens && key.size(3) == dim, "query and key differ in shape");
  TORCH_CHECK(heads > 0 && key.size(2) > 0 && heads % key.size(2) == 0, "query heads are no multiple of key heads");
  TORCH_CHECK(dim % 16 == 0 && dim >= 16, "head_dim is no multiple of 16: ", dim);
  TORCH_CHECK(scale > 0 && window >= 0, "scale must be positive and window 0 or more");
  for (const Tensor* one : {&query, &key, &value}) {
    TORCH_CHECK(one->stride(3) == 1, "head_dim must be dense");
    TORCH_CHECK(one->scalar_type() == query.scalar_type(), "query, key and value differ in type");
  }
  TORCH_CHECK(cos.has_value() == sin.has_value(), "cos and sin come together");
  if (cos.has_value()) {
    for (const Tensor& one : {*cos, *sin}) {
      TORCH_CHECK(one.dim() == 3 && one.scalar_type() == at::kFloat && one.stride(2) == 1, "angles: float32, dense");
      TORCH_CHECK((one.size(0) == rows || one.size(0) == 1) && one.size(1) == tokens && one.size(2) == dim,
                  "angles: (rows or 1, tokens, head_dim)");
    }
    TORCH_CHECK(cos->strides() == sin->strides(), "cos and sin differ in layout");
  }
  TORCH_CHECK(starts.scalar_type() == at::kLong && lengths.scalar_type() == at::kLong && starts.is_contiguous() &&
                  lengths.is_contiguous() && starts.sizes() == lengths.sizes(),
              "starts and lengths: int64, one of each per document");
  return {tokens, heads, key.size(2), dim, window, static_cast<float>(scale)};
}

// Tasks from the costliest down. Where they are few, the query heads of a group are tasks of their own.
std::vector<Task> list_tasks(const Shape& shape, const Tensor& starts, const Tensor& lengths, int64_t rows) {
  const int64_t documents = starts.numel(), group = shape.group();
  const int64_t parts = documents * shape.kv_heads >= 4 * at::get_num_threads() ? 1 : group;
  std::vector<Task> tasks;
  int64_t end = 0;  // of the document before
  for (int64_t i = 0; i < documents; ++i) {
    const int64_t start = starts.data_ptr<int64_t>()[i], length = lengths.data_ptr<int64_t>()[i];
    if (length == 0) {
      continue;
    }
    TORCH_CHECK(start >= 0 && length > 0 && start < rows * shape.tokens &&
                    length <= shape.tokens - start % shape.tokens,
                "document ", i, " (start ", start, ", length ", length, ") leaves its row of ", shape.tokens);
    TORCH_CHECK(start >= end, "document ", i, " (start ", start, ") begins before the end of another (", end, ")");
    end = start + length;
    const int64_t row = start / shape.tokens, first = start % shape.tokens;
    for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      for (int64_t part = 0; part < parts; ++part) {
        tasks.push_back({row, first, length, kv_head, kv_head * group + part * (group / parts), group / parts, part});
      }
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.length > b.length; });
  return tasks;
}

bool covers(const Tensor& lengths, int64_t rows, int64_t tokens) {
  const int64_t* one = lengths.data_ptr<int64_t>();
  return std::accumulate(one, one + lengths.numel(), int64_t{0}) == rows * tokens;
}

template <typename F>
void run_tasks(const std::vector<Task>& tasks, const F& run) {
  std::atomic<size_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks.size());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (size_t i = next++; i < tasks.size(); i = next++) {
      run(tasks[i]);
    }
  });
}

#if defined(REDLINE_BFLOAT16_TILES)
using BFloat16Tile = BFloat16;
#else
using BFloat16Tile = float;
#endif

template <typename T>
using Tile = std::conditional_t<std::is_same_v<T, BFloat16>, BFloat16Tile, float>;

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                                     const Tensor& starts, const Tensor& lengths, double scale, int64_t window) {
  const Shape shape = check(query, key, value, cos, sin, starts, lengths, scale, window);
  const std::vector<Task> tasks = list_tasks(shape, starts, lengths, query.size(0));
  const bool whole = covers(lengths, query.size(0), shape.tokens);
  const auto sizes = query.sizes();
  const Tensor out = whole ? at::empty(sizes, query.options()) : at::zeros(sizes, query.options());
  const Tensor log_sums = at::empty({sizes[0], sizes[2], sizes[1]}, query.options().dtype(at::kFloat));
  const Angles angles(cos, sin);
  with_type(query, [&](auto t) {
    using T = decltype(t);
    using E = Tile<T>;
    const Rows<T> q(query), k(key), v(value), o(out);
    run_tasks(tasks, [&](const Task& task) {
      run_forward<T, E>(shape, task, q, k, v, angles, o, log_sums.data_ptr<float>());
    });
  });
  return {out, log_sums};
}

void attention_backward(const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
                        const std::optional<Tensor>& cos, const std::optional<Tensor>& sin, const Tensor& out,
                        const Tensor& log_sums, const Tensor& starts, const Tensor& lengths, double scale,
                        int64_t window, const Tensor& query_grad, const Tensor& key_grad, const Tensor& value_grad) {
  const Shape shape = check(query, key, value, cos, sin, starts, lengths, scale, window);
  for (const Tensor* one : {&grad, &out}) {
    TORCH_CHECK(one->sizes() == query.sizes() && one->stride(3) == 1 && one->scalar_type() == query.scalar_type(),
                "the output or its gradient does not suit the query");
  }
  TORCH_CHECK(log_sums.sizes() == at::IntArrayRef({query.size(0), shape.heads, shape.tokens}) &&
                  log_sums.is_contiguous() && log_sums.scalar_type() == at::kFloat,
              "log_sums: (rows, heads, tokens) float32");
  TORCH_CHECK(query_grad.sizes() == query.sizes() && key_grad.sizes() == key.sizes() &&
                  query_grad.scalar_type() == query.scalar_type(),
              "the results do not suit the inputs");
  check(query_grad, key_grad, value_grad, cos, sin, starts, lengths, scale, window);
  const std::vector<Task> tasks = list_tasks(shape, starts, lengths, query.size(0));
  if (!covers(lengths, query.size(0), shape.tokens)) {
    query_grad.zero_();
    key_grad.zero_();
    value_grad.zero_();
  }
  const bool in_parts = !tasks.empty() && tasks[0].heads < shape.group();
  const int64_t part_size = key.numel();
  const auto options = query.options().dtype(at::kFloat);
  const Tensor parts = in_parts ? at::empty({2, shape.group(), part_size}, options) : at::empty({0}, options);
  float* key_parts = in_parts ? parts.data_ptr<float>() : nullptr;
  const Angles angles(cos, sin);
  with_type(query, [&](auto t) {
    using T = decltype(t);
    using E = Tile<T>;
    const Rows<T> q(query), k(key), v(value), o(out), g(grad);
    const Gradients<T> to{Rows<T>(query_grad), Rows<T>(key_grad), Rows<T>(value_grad), key_parts,
                          in_parts ? key_parts + shape.group() * part_size : nullptr, part_size};
    run_tasks(tasks, [&](const Task& task) {
      run_backward<T, E>(shape, task, q, k, v, angles, o, log_sums.data_ptr<float>(), g, to);
    });
    if (in_parts) {
      add_parts<T>(shape, tasks, angles, to);
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(redline, CPU, m) {
  m.impl("attention", &attention);
  m.impl("attention_backward", &attention_backward);
}

}  // namespace redline
