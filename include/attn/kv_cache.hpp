// Floor 4. The cache of keys and values of earlier tokens, for decoding.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "cache_memory.hpp"
#include "kernel/isa/targets.hpp"
#include "kernel/row_source.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "rotary.hpp"
#include "stored_heads.hpp"
#include "tensor.hpp"
#include "tensor_argument.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// How a cache stores keys or values.
enum class CacheFormat : std::uint8_t {
  native,  ///< in the cache's own type
  bfloat16,
  half,
  int8,  ///< 8 bits, and a scale as float for each row of a head
};

[[nodiscard]] constexpr std::string_view cache_format_name(CacheFormat format) {
  constexpr std::array<std::string_view, 4> names{"native", "bfloat16", "half", "int8"};
  const auto i = static_cast<std::size_t>(format);
  return i < names.size() ? names[i] : "unknown";
}

/// How a cache lays tokens out.
struct KvCacheOptions {
  CacheFormat keys = CacheFormat::native;
  CacheFormat values = CacheFormat::native;
  /// Tokens of a page, a multiple of 64. Without it, the memory of all tokens up to capacity is there from the start; with
  /// pages it grows as they come, and forked sequences share pages. A window needs pages: of 64 tokens where this is not set.
  std::optional<Index> page = {};
  /// How many tokens a query sees, itself included. What no later query sees is given back: memory is the window and what
  /// one call appends, in whole pages.
  std::optional<Index> window = {};
};

/// Keys [B,G,capacity,D], already rotated, and values [B,G,capacity,Dv] of B sequences that may differ in length.
///
/// Keys and values may each be stored in fewer bits, rounded to nearest when they are appended: attention then reads fewer
/// bytes. In int8 the largest number of a row becomes 127; a row with infinities or NaN becomes NaN.
/// For prompts of different lengths: pad them at the right, append them all, then `roll_back(b, padding of b)`; or fill a
/// cache of one sequence and `fork` from it.
/// Copies of a cache with pages share them until one of them writes. A cache that was moved from holds no sequences.
/// A call that fails changes nothing that can be read; in a cache with a window it may leave fewer tokens to roll back to.
template <Scalar T>
class KvCache {
 public:
  /// value_size: Dv; where it is 0, the same as D.
  /// Errors: sizes below 1 (batch and capacity may be 0), or that memory cannot hold.
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size = 0)
      : held_(Held({batch, key_value_heads, capacity, head_size}, value_size, {}, native, Memory::in_stretches)) {}
  /// The same with keys and values each in a format. Errors: besides, formats that do not exist.
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size, CacheFormat keys,
          CacheFormat values)
      : held_(Held({batch, key_value_heads, capacity, head_size}, value_size, {.keys = keys, .values = values},
                   format_of, Memory::in_stretches)) {}
  /// The same with formats, pages and a window. Errors: besides, a page that is not a multiple of 64, a window below 1.
  KvCache(Index batch, Index key_value_heads, Index capacity, Index head_size, Index value_size,
          const KvCacheOptions& options)
      : held_(Held({batch, key_value_heads, capacity, head_size}, value_size, options, format_of, Memory::in_pages)) {}

  [[nodiscard]] Index batch() const { return held_->keys.shape[0]; }
  [[nodiscard]] Index key_value_heads() const { return held_->keys.shape[1]; }
  [[nodiscard]] Index capacity() const { return held_->keys.shape[2]; }
  [[nodiscard]] Index head_size() const { return held_->keys.shape[3]; }
  [[nodiscard]] Index value_size() const { return held_->values.shape[3]; }
  [[nodiscard]] CacheFormat key_format() const { return held_->keys.format; }
  [[nodiscard]] CacheFormat value_format() const { return held_->values.format; }
  /// Tokens of a page, and of the window; 0 where there is none.
  [[nodiscard]] Index page() const { return memory().sizes().page; }
  [[nodiscard]] Index window() const { return memory().sizes().window; }
  /// Bytes of the keys and values that sequences hold, in whole pages; what they share counts once. Without pages: of all
  /// tokens up to capacity.
  [[nodiscard]] Index bytes() const { return memory().bytes(); }
  /// Bytes of the pages that are there for later use: pages are allocated some 8 MB at a time.
  [[nodiscard]] Index spare_bytes() const { return memory().spare_bytes(); }

  /// How many tokens each sequence holds, or one of them. Errors: a sequence that does not exist.
  [[nodiscard]] std::span<const Index> lengths() const { return memory().lengths(); }
  [[nodiscard]] Index length(Index sequence) const {
    check_sequence("KvCache::length", sequence);
    return memory().length(sequence);
  }
  /// The first token of a sequence that is held: 0, or, with a window, the first of a page.
  [[nodiscard]] Index first(Index sequence) const {
    check_sequence("KvCache::first", sequence);
    return memory().first(sequence);
  }
  /// The length of the longest sequence.
  [[nodiscard]] Index max_length() const {
    Index longest = 0;
    for (const Index length : lengths()) longest = std::max(longest, length);
    return longest;
  }

  /// Keys [B,G,max_length,D] and values [B,G,max_length,Dv]. Those past a sequence's length are not to be read.
  /// `written` makes the views longer by tokens that were written and not yet committed.
  /// Errors: more tokens than capacity; pages, or a format other than native, which read_keys and read_values convert.
  [[nodiscard]] View<const T, 4> keys(Index written = 0) const { return so_far("KvCache::keys", 0, written); }
  [[nodiscard]] View<const T, 4> values(Index written = 0) const { return so_far("KvCache::values", 1, written); }
  /// Copies of keys [B,G,max_length,D] and values [B,G,max_length,Dv], as attention reads them. Those past a sequence's
  /// length, and those given back, are 0.
  [[nodiscard]] Tensor<T, 4> read_keys() const { return read(0); }
  [[nodiscard]] Tensor<T, 4> read_values() const { return read(1); }

  /// Keys and values as kernels read them.
  [[nodiscard]] detail::StoredHeads<Accumulator<T>> stored_keys(Isa isa) const { return stored(0, isa); }
  [[nodiscard]] detail::StoredHeads<Accumulator<T>> stored_values(Isa isa) const { return stored(1, isa); }

  /// Throws unless every sequence has room for `tokens` more.
  void check_room(Index tokens) const { check_room(tokens, max_length()); }
  /// Throws unless all that queries from these positions on may see is held: one position for each sequence.
  void check_queries(std::string_view fn, std::span<const Index> start) const {
    for (Index b = 0; b < batch() && window() != 0; ++b)
      detail::require(memory().first(b) <= memory().sizes().first_seen(start[static_cast<std::size_t>(b)]), fn,
                      "queries, expected none whose window of ", window(), " tokens begins before the first held, ",
                      memory().first(b), ", got a first query at ", start[static_cast<std::size_t>(b)]);
  }

  /// Appends keys [B,G,S,D] and values [B,G,S,Dv] to every sequence.
  /// Errors: shapes that do not fit; more than capacity. The cache is then as it was.
  void append(View<const T, 4> keys, View<const T, 4> values) {
    write(keys, values);
    commit(keys.dimension(2));
  }
  /// Appends keys [G,S,D] and values [G,S,Dv] to one sequence. Errors: besides, a sequence that does not exist.
  void append(Index sequence, View<const T, 3> keys, View<const T, 3> values) {
    check_sequence("KvCache::append", sequence);
    const Index S = keys.dimension(1);
    detail::require_shape("KvCache::append", "keys [G,S,D]", keys, {key_value_heads(), S, head_size()});
    detail::require_shape("KvCache::append", "values [G,S,Dv]", values, {key_value_heads(), S, value_size()});
    check_room(S, memory().length(sequence));
    write(sequence, batch_of_one(keys), batch_of_one(values));
    held_->memory.commit(sequence, S);
  }

  /// Writes keys and values behind the tokens of each sequence without counting them, so that a call that attends to them
  /// may still fail and leave the cache as it was. `commit` completes what is then an `append`.
  /// Errors: as `append`.
  void write(View<const T, 4> keys, View<const T, 4> values) {
    const Index S = keys.dimension(2);
    detail::require_shape("KvCache::append", "keys [B,G,S,D]", keys, {batch(), key_value_heads(), S, head_size()});
    detail::require_shape("KvCache::append", "values [B,G,S,Dv]", values,
                          {batch(), key_value_heads(), S, value_size()});
    check_room(S);
    write(0, keys, values);
  }
  /// Counts `tokens` tokens that were written. Errors: more than capacity.
  void commit(Index tokens) {
    check_room(tokens);
    for (Index b = 0; b < batch(); ++b) held_->memory.commit(b, tokens);
  }

  /// Forgets the last `tokens` of every sequence, or of one.
  /// Errors: a negative number, or more than a sequence holds; in a cache with a window, so many that the window of the next
  /// token is no longer held: what the last append brought can always be rolled back. The cache is then as it was.
  void roll_back(Index tokens) {
    for (Index b = 0; b < batch(); ++b) check_roll_back(b, tokens);
    for (Index b = 0; b < batch(); ++b) held_->memory.truncate(b, memory().length(b) - tokens);
  }
  void roll_back(Index sequence, Index tokens) {
    check_sequence("KvCache::roll_back", sequence);
    check_roll_back(sequence, tokens);
    held_->memory.truncate(sequence, memory().length(sequence) - tokens);
  }

  /// Forgets all sequences, or one. Errors: a sequence that does not exist.
  void reset() {
    for (Index b = 0; b < batch(); ++b) held_->memory.truncate(b, 0);
  }
  void reset(Index sequence) {
    check_sequence("KvCache::reset", sequence);
    held_->memory.truncate(sequence, 0);
  }
  /// Frees the pages that no sequence holds, where all that were allocated together are free.
  void release_spare() { held_->memory.release_spare(); }

  /// Makes sequence `to` a copy of sequence `from`, of this cache or of another of the same sizes and formats, but for the
  /// batch. With pages nothing is copied: both share them, and the first to append copies the last one, if it is not full.
  /// Errors: sequences that do not exist, another kind of cache.
  void fork(Index from, Index to) { fork(*this, from, to); }
  void fork(const KvCache& other, Index from, Index to) {
    constexpr auto fn = "KvCache::fork";
    other.check_sequence(fn, from);
    check_sequence(fn, to);
    detail::require(same_kind(other), fn,
                    "cache, expected one of the same heads, capacity, sizes, formats, pages and window");
    held_->memory.fork(other.memory(), from, to);
  }
  /// Makes each sequence b a copy of what sequence source[b] was, as a beam search asks for. With pages nothing is copied.
  /// Errors: a sequence that does not exist, another number of them than the batch.
  void reorder(std::span<const Index> source) {
    detail::require(std::ssize(source) == batch(), "KvCache::reorder", "expected one sequence for each of ", batch(),
                    ", got ", std::ssize(source));
    for (const Index sequence : source) check_sequence("KvCache::reorder", sequence);
    held_->memory.reorder(source);
  }

  /// Drops `count` tokens of a sequence from token `first` on. Those behind them move up unchanged: right for keys that
  /// are not rotated.
  /// Errors: a sequence that does not exist, tokens that it does not hold; in a cache with a window, tokens whose place would
  /// be taken by others that were given back. The cache is then as it was.
  void erase(Index sequence, Index first, Index count) {
    check_erase(sequence, first, count);
    held_->memory.erase(sequence, first, count, false);
  }
  /// The same for keys that were rotated: those behind the dropped tokens are turned back to their new positions.
  ///
  /// Types: keys are turned in float, double in double (cosines and sines in float), and rounded once more to how they are
  /// stored: by at most 2^-8 of a number in bfloat16, 2^-11 in half, 1/254 of the largest of its row in int8.
  /// Errors: besides, another head size, and frequencies that depend on the length of the sequence and hence would change.
  void erase(Index sequence, Index first, Index count, const Rotary& rotary) {
    constexpr auto fn = "KvCache::erase";
    check_erase(sequence, first, count);
    detail::require(rotary.head_size() == head_size(), fn, "rotary, expected head size ", head_size(), ", got ",
                    rotary.head_size());
    detail::require(capacity() <= rotary.same_up_to(), fn,
                    "rotary, expected frequencies that do not depend on the length (RotaryConfig::length fixes it), or "
                    "a capacity of at most original_length = ",
                    rotary.same_up_to(), ", got ", capacity());
    const Workspace::Frame frame;
    A* const numbers = frame.take<A>(key_value_heads() * kernel::run_keys * head_size());
    float* const rounded = frame.take<float>(head_size());
    rotary.turn(View<A, 4>(numbers, {1, 0, 1, head_size()}), -count);  // so that later calls cannot fail
    held_->memory.erase(sequence, first, count, true);
    const Index length = memory().length(sequence);
    for (Index t = std::max(first, memory().first(sequence)), end = t; t < length && count > 0; t = end) {
      end = std::min(t - t % kernel::run_keys + kernel::run_keys, length);
      turn_keys(sequence, t, end, rotary, -count, numbers, rounded);
    }
  }

 private:
  using A = Accumulator<T>;
  using Memory = detail::CacheMemory<AlignedVector<std::byte>>;
  using Format = const kernel::RowFormat<A>& (*)(CacheFormat format, Isa isa);

  /// The formats of kernels. A pointer to this one is kept by caches that need it, so that programs which have none compile
  /// none of them.
  [[nodiscard]] static const kernel::RowFormat<A>& format_of(CacheFormat format, Isa isa) {
    switch (format) {
      case CacheFormat::bfloat16:
        return kernel::row_format_of<A, kernel::Bfloat16>(isa);
      case CacheFormat::half:
        return kernel::row_format_of<A, kernel::Half>(isa);
      case CacheFormat::int8:
        return kernel::row_format_of<A, kernel::ScaledBytes>(isa);
      case CacheFormat::native:
        break;
    }
    return native(format, isa);
  }
  [[nodiscard]] static const kernel::RowFormat<A>& native(CacheFormat, Isa isa) {
    return kernel::row_format_of<A, kernel::Stored<T>>(isa);
  }

  /// What keys or values are.
  struct Rows {
    std::array<Index, 4> shape{};  ///< [B,G,capacity,D] or [B,G,capacity,Dv]
    CacheFormat format = CacheFormat::native;
    Format kernels = native;

    Rows() = default;
    Rows(std::string_view what, const std::array<Index, 4>& sizes, CacheFormat as, Format formats, Index page)
        : shape(sizes), format(as), kernels(formats) {
      const auto& [batch, heads, capacity, size] = shape;
      detail::require(as <= CacheFormat::int8, "KvCache", what,
                      " in a format, expected native, bfloat16, half or int8, got CacheFormat(", static_cast<Index>(as),
                      ")");
      detail::require(batch >= 0 && capacity >= 0 && heads >= 1 && size >= 1, "KvCache",
                      "expected at least one head and head size and no negative size, got ", detail::as_shape(shape));
      using Most = std::array<std::byte, sizeof(A) + 2 * sizeof(float)>;  // an element takes, with a scale for each row
      const Shape all = detail::as_shape(shape);
      detail::checked_size<Most>("KvCache", what, all);
      detail::checked_size<Most>("KvCache", what, all.subspan(1));  // strides, which exist for a batch of 0 too
      detail::checked_size<Most>("KvCache", what, detail::as_shape(std::array<Index, 3>{heads, page, size}));
    }
    [[nodiscard]] Index row_bytes() const { return kernels(format, Isa::baseline).row_bytes(shape[3]); }
  };
  struct Held {
    Rows keys;
    Rows values;
    Memory memory;

    Held() = default;
    /// Checks all before it allocates.
    Held(const std::array<Index, 4>& sizes, Index value_size, const KvCacheOptions& options, Format formats,
         Memory (*make)(const detail::CacheSizes&))
        : keys("keys [B,G,capacity,D]", sizes, options.keys, formats, page_of(options)),
          values("values [B,G,capacity,Dv]", {sizes[0], sizes[1], sizes[2], value_size == 0 ? sizes[3] : value_size},
                 options.values, formats, page_of(options)),
          memory(make({.batch = detail::checked_size<Index>("KvCache", "batch",
                                                            detail::as_shape(std::array<Index, 1>{sizes[0]})),
                       .heads = sizes[1],
                       .capacity = sizes[2],
                       .row_bytes = {keys.row_bytes(), values.row_bytes()},
                       .page = page_of(options),
                       .window = options.window.value_or(0)})) {}
    [[nodiscard]] static Index page_of(const KvCacheOptions& options) {
      const Index page = options.page.value_or(options.window ? kernel::run_keys : 0);
      detail::require(!options.page || (page >= kernel::run_keys && page % kernel::run_keys == 0), "KvCache",
                      "page, expected a multiple of ", kernel::run_keys, " tokens, got ", page);
      detail::require(!options.window || *options.window >= 1, "KvCache", "window, expected at least 1, got ",
                      options.window.value_or(1));
      return page;
    }
  };

  [[nodiscard]] const Memory& memory() const { return held_->memory; }
  [[nodiscard]] const Rows& rows(std::size_t part) const { return part == 0 ? held_->keys : held_->values; }
  [[nodiscard]] detail::StoredHeads<A> stored(std::size_t part, Isa isa) const {
    return {memory().rows(part), &rows(part).kernels(rows(part).format, isa)};
  }
  [[nodiscard]] bool same_kind(const KvCache& other) const {
    const auto kind = [](const KvCache& cache) {
      return std::array<Index, 8>{cache.key_value_heads(),
                                  cache.capacity(),
                                  cache.head_size(),
                                  cache.value_size(),
                                  static_cast<Index>(cache.key_format()),
                                  static_cast<Index>(cache.value_format()),
                                  cache.page(),
                                  cache.window()};
    };
    return kind(*this) == kind(other);
  }
  [[nodiscard]] static View<const T, 4> batch_of_one(const View<const T, 3>& x) {
    return {x.data(), {1, x.dimension(0), x.dimension(1), x.dimension(2)}, {0, x.stride(0), x.stride(1), x.stride(2)}};
  }

  [[gnu::noinline]] View<const T, 4> so_far(std::string_view fn, std::size_t part, Index written) const {
    check_room(written);
    detail::require(rows(part).format == CacheFormat::native && page() == 0, fn,
                    "cache, expected one in the format native and without pages to view it (read_keys and read_values "
                    "copy), got ",
                    cache_format_name(rows(part).format), page() == 0 ? "" : " in pages");
    const auto& [B, G, capacity, size] = rows(part).shape;
    const void* const first = memory().rows(part).data;
    return {static_cast<const T*>(first),
            {B, G, max_length() + written, size},
            {G * capacity * size, capacity * size, size, 1}};
  }
  [[nodiscard]] Tensor<T, 4> read(std::size_t part) const {
    const auto& [B, G, capacity, size] = rows(part).shape;
    auto all = detail::make_tensor<T, 4>({B, G, max_length(), size});
    all.setZero();
    std::vector<A> row(static_cast<std::size_t>(size));
    const kernel::RowFormat<A>& format = *stored(part, active_isa()).format;
    for (Index b = 0; b < B; ++b)
      for (Index g = 0; g < G; ++g)
        for (Index t = memory().first(b); t < memory().length(b); ++t) {
          format.load(row.data(), size, memory().row(part, b, g, t), 0, 1, size);
          for (Index d = 0; d < size; ++d) all(b, g, t, d) = static_cast<T>(row[static_cast<std::size_t>(d)]);
        }
    return all;
  }

  /// Writes [n,G,S,D] and [n,G,S,Dv] behind the tokens of n sequences from `first` on.
  [[gnu::noinline]] void write(Index first, const View<const T, 4>& keys, const View<const T, 4>& values) {
    for (Index b = 0; b < keys.dimension(0); ++b) held_->memory.reserve(first + b, keys.dimension(2));
    write_rows(0, first, keys);
    write_rows(1, first, values);
  }
  [[gnu::noinline]] void write_rows(std::size_t part, Index first, const View<const T, 4>& x) {
    const Index size = x.dimension(3), step = x.stride(3);
    const bool copies = rows(part).format == CacheFormat::native;
    const Workspace::Frame frame;
    float* const numbers = frame.take<float>(copies ? 0 : size);
    const kernel::RowFormat<A>& format = *stored(part, active_isa()).format;
    for (Index b = 0; b < x.dimension(0); ++b)
      for (Index g = 0; g < x.dimension(1); ++g)
        for (Index s = 0; s < x.dimension(2); ++s) {
          const T* const row = x.data() + b * x.stride(0) + g * x.stride(1) + s * x.stride(2);
          void* const copy = held_->memory.row(part, first + b, g, memory().length(first + b) + s);
          if (!copies) {
            for (Index d = 0; d < size; ++d) numbers[d] = static_cast<float>(row[d * step]);
            format.store(static_cast<std::byte*>(copy), numbers, size);
          } else if (step == 1) {
            std::copy_n(row, size, static_cast<T*>(copy));
          } else {
            for (Index d = 0; d < size; ++d) static_cast<T*>(copy)[d] = row[d * step];
          }
        }
  }
  /// Turns the keys of tokens `begin` to before `end`, which lie in one run.
  void turn_keys(Index b, Index begin, Index end, const Rotary& rotary, Index by, A* numbers, float* rounded) {
    const Index size = head_size(), tokens = end - begin;
    const detail::StoredHeads<A> stored = stored_keys(active_isa());
    for (Index g = 0; g < key_value_heads(); ++g)
      stored.format->load(numbers + g * tokens * size, size, memory().row(0, b, g, begin), stored.rows.row, tokens,
                          size);
    rotary.turn(View<A, 4>(numbers, {1, key_value_heads(), tokens, size}), by);
    for (Index g = 0; g < key_value_heads(); ++g)
      for (Index t = 0; t < tokens; ++t, numbers += size) {
        std::byte* const row = held_->memory.row(0, b, g, begin + t);
        if (stored.format->store == nullptr) {
          std::copy_n(numbers, size, static_cast<A*>(static_cast<void*>(row)));
        } else {
          for (Index d = 0; d < size; ++d) rounded[d] = static_cast<float>(numbers[d]);
          stored.format->store(row, rounded, size);
        }
      }
  }

  // ---- Checks ----

  void check_room(Index tokens, Index used) const {
    detail::require(tokens >= 0 && tokens <= capacity() - used, "KvCache::append", "capacity, expected room for ",
                    tokens, " more tokens, got ", used, " of ", capacity(), " in use");
  }
  void check_sequence(std::string_view fn, Index sequence) const {
    detail::require(sequence >= 0 && sequence < batch(), fn, "sequence, expected one of ", batch(), ", got ", sequence);
  }
  void check_roll_back(Index b, Index tokens) const {
    constexpr auto fn = "KvCache::roll_back";
    const Index length = memory().length(b);
    detail::require(tokens >= 0 && tokens <= length, fn, "tokens, expected from 0 to the ", length, " held, got ",
                    tokens);
    detail::require(tokens == length || memory().first(b) <= memory().sizes().first_seen(length - tokens), fn,
                    "tokens, expected to keep the window of the next one, of ", window(),
                    " tokens, within those held, ", memory().first(b), " to ", length, ", got ", tokens);
  }
  void check_erase(Index sequence, Index first, Index count) const {
    constexpr auto fn = "KvCache::erase";
    check_sequence(fn, sequence);
    const Index length = memory().length(sequence);
    detail::require(first >= 0 && count >= 0 && first <= length && count <= length - first, fn,
                    "tokens, expected some of ", length, ", got ", count, " from ", first, " on");
    detail::require(memory().first_after_erasing(sequence, first, count) <= memory().sizes().first_seen(length - count),
                    fn, "tokens, expected to keep a window of ", window(), " tokens that are held, of ",
                    memory().first(sequence), " to ", length, ", got ", count, " from ", first, " on");
  }

  detail::EmptyWhenMoved<Held> held_;
};

/// The cache argument of LlamaAttention::forward: a KvCache, a pointer to one, or nothing.
template <Scalar T>
class CacheRef {
 public:
  CacheRef() = default;
  CacheRef(KvCache<T>& cache) : cache_(&cache) {}  // NOLINT: caches and pointers convert
  CacheRef(KvCache<T>* cache) : cache_(cache) {}   // NOLINT: the same
  /// The cache, or null.
  [[nodiscard]] KvCache<T>* get() const { return cache_; }

 private:
  KvCache<T>* cache_ = nullptr;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {
template <Scalar T>
inline constexpr bool has_overload<KvCache<T>> = true;
}  // namespace attn::detail
