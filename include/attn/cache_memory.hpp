// Floor 4. Where the tokens of a cache lie: for each sequence one stretch of memory, or a table of pages. Only bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cache_page.hpp"
#include "error.hpp"
#include "kernel/problem.hpp"
#include "math.hpp"
#include "memory.hpp"

namespace attn::detail {

/// Sizes of a cache. Two caches of the same sizes may share pages.
struct CacheSizes {
  Index batch = 0, heads = 0, capacity = 0;
  std::array<Index, 2> row_bytes = {};  ///< of keys and of values
  Index page = 0;                       ///< tokens of a page; 0: each sequence has its capacity from the start
  Index window = 0;                     ///< tokens that a query sees, itself included; 0: all

  [[nodiscard]] Index page_bytes() const { return heads * page * (row_bytes[0] + row_bytes[1]); }

  // A bundle of pages holds [head][page][token] rows of keys and then of values, so that pages which follow one another are
  // one stretch of memory for each head.

  /// Pages of a bundle: as many as a sequence may need, of some 8 MB in all.
  [[nodiscard]] Index bundle_pages() const {
    constexpr Index bytes = Index{1} << 23;
    const Index tokens = window == 0 ? capacity : std::min(capacity, window + page);
    return std::clamp<Index>(bytes / page_bytes(), 1, std::max<Index>(ceil_div(tokens, page), 1));
  }
  /// Bytes of a head's keys or values in a bundle; where values begin, at a cache line; bytes of the bundle.
  [[nodiscard]] Index head_bytes(std::size_t part) const { return bundle_pages() * page * row_bytes[part]; }
  [[nodiscard]] Index values_offset() const { return round_up(heads * head_bytes(0), Index{cache_line}); }
  [[nodiscard]] Index bundle_bytes() const { return values_offset() + heads * head_bytes(1); }
  /// The first token that is still seen once a sequence has grown to `length` and another token follows.
  [[nodiscard]] Index first_seen(Index length) const {
    return window == 0 ? 0 : std::max<Index>(length - window + 1, 0);
  }
};

/// A value on the heap, or none; copies are independent. Programs that make none do not compile its functions.
template <class T>
class Indirect {
 public:
  Indirect() = default;
  explicit Indirect(T value) : value_(std::make_shared<T>(std::move(value))), copy_(copy) {}
  Indirect(const Indirect& other)
      : value_(other.copy_ != nullptr ? other.copy_(*other.value_) : nullptr), copy_(other.copy_) {}
  Indirect(Indirect&& other) noexcept : value_(std::move(other.value_)), copy_(std::exchange(other.copy_, nullptr)) {}
  Indirect& operator=(Indirect other) noexcept {
    value_.swap(other.value_);
    copy_ = other.copy_;
    return *this;
  }
  ~Indirect() = default;

  T* operator->() { return value_.get(); }
  const T* operator->() const { return value_.get(); }

 private:
  static std::shared_ptr<T> copy(const T& value) { return std::make_shared<T>(value); }

  std::shared_ptr<T> value_;
  std::shared_ptr<T> (*copy_)(const T&) = nullptr;
};

/// Rows of keys (part 0) and of values (part 1) of all sequences.
///
/// Pages that sequences share are copied before one of them is written to. Only `reserve`, `fork`, `reorder` and `erase`
/// allocate, and where that fails they change nothing that shows.
template <class Memory>
class CacheMemory {
  using Page = CachePage<Memory>;
  using Table = std::vector<Page>;

 public:
  CacheMemory() = default;
  /// A stretch of memory for each sequence. Programs that make no other do not compile what pages need.
  [[nodiscard]] static CacheMemory in_stretches(const CacheSizes& sizes) {
    CacheMemory memory(sizes);
    for (std::size_t part = 0; part < 2; ++part)
      memory.stretch_[part].resize(as_size(sizes.batch * sizes.heads * sizes.capacity * sizes.row_bytes[part]));
    return memory;
  }
  /// The same, or pages where sizes ask for them.
  [[nodiscard]] static CacheMemory in_pages(const CacheSizes& sizes) {
    if (sizes.page == 0) return in_stretches(sizes);
    CacheMemory memory(sizes);
    memory.pages_ = Indirect<Pages>(Pages{.tables = std::vector<Table>(as_size(sizes.batch)),
                                          .spare = {sizes.bundle_pages(), sizes.bundle_bytes()},
                                          .head_bytes = {sizes.head_bytes(0), sizes.head_bytes(1)},
                                          .values_offset = sizes.values_offset(),
                                          .first = std::vector<Index>(as_size(sizes.batch)),
                                          .reserve = &CacheMemory::reserve_pages,
                                          .truncate = &CacheMemory::truncate_pages});
    return memory;
  }

  [[nodiscard]] const CacheSizes& sizes() const { return sizes_; }
  [[nodiscard]] std::span<const Index> lengths() const { return lengths_; }
  [[nodiscard]] Index length(Index b) const { return lengths_[as_size(b)]; }
  /// The first token that a sequence still holds.
  [[nodiscard]] Index first(Index b) const { return is_paged() ? pages_->first[as_size(b)] : 0; }
  [[nodiscard]] bool is_paged() const { return sizes_.page != 0; }

  /// The row of a token that is held, or, after `reserve`, will be.
  [[nodiscard]] const std::byte* row(std::size_t part, Index b, Index g, Index t) const {
    const Index bytes = sizes_.row_bytes[part];
    if (!is_paged()) return stretch_[part].data() + ((b * sizes_.heads + g) * sizes_.capacity + t) * bytes;
    const std::byte* const run = pages_->runs[part][as_size(b * pages_->runs_row + t / kernel::run_keys)];
    return run + g * pages_->head_bytes[part] + t % kernel::run_keys * bytes;
  }
  [[nodiscard]] std::byte* row(std::size_t part, Index b, Index g, Index t) {
    return const_cast<std::byte*>(std::as_const(*this).row(part, b, g, t));
  }
  /// All rows of keys or values, as kernels are told of them.
  [[nodiscard]] kernel::StoredRows rows(std::size_t part) const {
    const Index bytes = sizes_.row_bytes[part];
    const Index head = is_paged() ? pages_->head_bytes[part] : sizes_.capacity * bytes;
    kernel::StoredRows rows{.data = stretch_[part].data(), .batch = sizes_.heads * head, .head = head, .row = bytes};
    if (is_paged()) rows.runs = pages_->runs[part].data(), rows.runs_row = pages_->runs_row;
    return rows;
  }

  /// Bytes of all tokens that are held, in whole pages; what sequences share counts once.
  [[nodiscard]] Index bytes() const {
    if (!is_paged()) return std::ssize(stretch_[0]) + std::ssize(stretch_[1]);
    Table pages;
    for (const Table& table : pages_->tables)
      std::copy_if(table.begin(), table.end(), std::back_inserter(pages),
                   [](const Page& page) { return page.exists(); });
    std::sort(pages.begin(), pages.end());
    return (std::unique(pages.begin(), pages.end()) - pages.begin()) * sizes_.page_bytes();
  }
  /// Bytes of the pages that no sequence holds.
  [[nodiscard]] Index spare_bytes() const { return is_paged() ? pages_->spare.count() * sizes_.page_bytes() : 0; }
  /// Frees the bundles of which no sequence holds a page.
  void release_spare() {
    if (is_paged()) pages_->spare.release();
  }

  /// Makes room for `tokens` tokens behind those of a sequence, in memory that no other sequence holds. Gives back what is
  /// before the window of the first of them.
  void reserve(Index b, Index tokens) {
    if (is_paged()) (this->*pages_->reserve)(b, tokens);
  }
  /// Counts tokens that were written.
  void commit(Index b, Index tokens) { lengths_[as_size(b)] += tokens; }

  /// Forgets all tokens of a sequence from `length` on.
  void truncate(Index b, Index length) {
    lengths_[as_size(b)] = length;
    if (is_paged()) (this->*pages_->truncate)(b);
  }

  /// Makes sequence `to` a copy of sequence `from` of a cache of the same sizes, which may be this one.
  void fork(const CacheMemory& other, Index from, Index to) {
    if (&other == this && from == to) return;
    if (is_paged()) {
      set_table(to, other.table_of(from));
      pages_->first[as_size(to)] = other.first(from);
    } else {
      for (std::size_t part = 0; part < 2; ++part)
        for (Index g = 0; g < sizes_.heads; ++g)
          copy_rows(row(part, to, g, 0), other.row(part, from, g, 0), other.length(from) * sizes_.row_bytes[part]);
    }
    lengths_[as_size(to)] = other.length(from);
  }

  /// Makes each sequence b a copy of what sequence source[b] was.
  void reorder(std::span<const Index> source) {
    if (!is_paged()) return reorder_stretches({source.begin(), source.end()});
    std::vector<Table> tables(source.size());
    std::vector<Index> lengths(source.size()), first(source.size());
    for (std::size_t b = 0; b < source.size(); ++b) {
      tables[b] = table_of(source[b]);
      lengths[b] = length(source[b]), first[b] = this->first(source[b]);
    }
    for (std::size_t b = 0; b < source.size(); ++b) set_table(static_cast<Index>(b), std::move(tables[b]));
    lengths_.swap(lengths), pages_->first.swap(first);
  }

  /// The first token that a sequence would hold once `count` tokens from `begin` on were erased.
  [[nodiscard]] Index first_after_erasing(Index b, Index begin, Index count) const {
    if (first(b) <= begin) return first(b);
    return std::max(first(b) - count, begin);
  }
  /// Drops `count` tokens from `begin` on; those behind them move forward. With `owned`, these are then in memory that no
  /// other sequence holds.
  void erase(Index b, Index begin, Index count, bool owned) {
    const Index kept = first_after_erasing(b, begin, count), left = length(b) - count;
    const Index moved = std::max(begin, kept);  // the first token that comes from elsewhere
    if (is_paged() && begin % sizes_.page == 0 && count % sizes_.page == 0) {
      if (owned) own(b, moved + count, length(b));
      Table& table = pages_->tables[as_size(b)];
      const auto from = table.begin() + begin / sizes_.page;
      std::rotate(from, from + count / sizes_.page, table.end());
      show_runs(b);
    } else {
      if (is_paged()) own(b, moved, left);
      move_rows(b, moved, left, count);
    }
    if (is_paged()) pages_->first[as_size(b)] = kept;
    truncate(b, left);
    if (is_paged()) forget_before(b, kept);
  }

 private:
  /// What there is beside `sizes_` and `lengths_` where sequences lie in pages.
  struct Pages {
    std::vector<Table> tables;  ///< the pages of each sequence
    SparePages<Memory> spare;
    std::array<Index, 2> head_bytes;  ///< of the keys and of the values of a head in a bundle
    Index values_offset;              ///< of a bundle
    /// [B][runs_row] for keys and for values: where each run lies, as kernels read it; null where nothing is held.
    std::array<std::vector<const std::byte*>, 2> runs = {};
    Index runs_row = 0;
    std::vector<Index> first;  ///< of each sequence, the first token that is held
    void (CacheMemory::*reserve)(Index b, Index tokens);
    void (CacheMemory::*truncate)(Index b);
  };

  explicit CacheMemory(const CacheSizes& sizes) : sizes_(sizes), lengths_(as_size(sizes.batch)) {}

  [[nodiscard]] static std::size_t as_size(Index n) { return static_cast<std::size_t>(n); }
  static void copy_rows(std::byte* to, const std::byte* from, Index bytes) {
    if (bytes > 0) std::memmove(to, from, as_size(bytes));
  }

  /// The pages of a sequence's tokens.
  [[nodiscard]] Table table_of(Index b) const {
    const Table& table = pages_->tables[as_size(b)];
    return {table.begin(), table.begin() + ceil_div(length(b), sizes_.page)};
  }

  void reserve_pages(Index b, Index tokens) {
    forget_before(b, sizes_.first_seen(length(b)));
    own(b, length(b), length(b) + tokens);
  }
  void truncate_pages(Index b) {
    if (length(b) == 0) pages_->first[as_size(b)] = 0;
    resize_table(b, ceil_div(length(b), sizes_.page));
  }
  /// Makes the memory of tokens `begin` to before `end` exist, with no other holder.
  [[gnu::noinline]] void own(Index b, Index begin, Index end) {
    if (begin >= end) return;
    const Index pages = ceil_div(end, sizes_.page);
    if (std::ssize(pages_->tables[as_size(b)]) < pages) resize_table(b, pages);
    for (Index i = begin / sizes_.page; i < pages; ++i) {
      Table& table = pages_->tables[as_size(b)];
      Page& page = table[as_size(i)];
      if (page.exists() && !page.is_shared()) continue;
      Page own = pages_->spare.take(i == 0 ? Page() : table[as_size(i - 1)], pages - i);
      if (page.exists()) copy_page(own, page);
      page = std::move(own);
      show_run(b, i);
    }
  }
  void copy_page(const Page& to, const Page& from) {
    for (std::size_t part = 0; part < 2; ++part)
      for (Index g = 0; g < sizes_.heads; ++g)
        std::memcpy(place_of(to, part) + g * pages_->head_bytes[part],
                    place_of(from, part) + g * pages_->head_bytes[part], as_size(sizes_.page * sizes_.row_bytes[part]));
  }
  /// Where the keys or values of the first head of a page are.
  [[nodiscard]] std::byte* place_of(const Page& page, std::size_t part) const {
    return page.bundle() + (part == 0 ? 0 : pages_->values_offset) +
           page.number() * sizes_.page * sizes_.row_bytes[part];
  }
  /// Gives back the pages wholly before token `first`.
  void forget_before(Index b, Index first) {
    Table& table = pages_->tables[as_size(b)];
    for (Index i = std::min(first / sizes_.page, std::ssize(table)); i-- > 0 && table[as_size(i)].exists();) {
      pages_->spare.give_back(std::move(table[as_size(i)]));
      show_run(b, i);
    }
    pages_->first[as_size(b)] = std::max(pages_->first[as_size(b)], first / sizes_.page * sizes_.page);
  }
  /// Rows `begin` to before `end` from those `count` tokens behind them, in stretches that lie in one page each.
  void move_rows(Index b, Index begin, Index end, Index count) {
    for (Index t = begin, n = 0; t < end; t += n) {
      n = end - t;
      if (is_paged()) n = std::min({n, sizes_.page - t % sizes_.page, sizes_.page - (t + count) % sizes_.page});
      for (std::size_t part = 0; part < 2; ++part)
        for (Index g = 0; g < sizes_.heads; ++g)
          copy_rows(row(part, b, g, t), row(part, b, g, t + count), n * sizes_.row_bytes[part]);
    }
  }

  /// Sequences whose memory nobody is still to read are written first; what is left are cycles, which need room for one.
  void reorder_stretches(std::vector<Index> source) {
    CacheSizes one = sizes_;
    one.batch = 1;
    CacheMemory saved = in_stretches(one);
    std::vector<Index> readers(source.size()), free;
    free.reserve(source.size());
    for (std::size_t b = 0; b < source.size(); ++b)
      if (source[b] != static_cast<Index>(b)) ++readers[as_size(source[b])];
    const auto write = [&](Index b) {
      const Index read = std::exchange(source[as_size(b)], b);
      fork(*this, read, b);
      if (--readers[as_size(read)] == 0 && source[as_size(read)] != read) free.push_back(read);
    };
    for (Index b = 0; b < sizes_.batch; ++b)
      if (source[as_size(b)] != b && readers[as_size(b)] == 0) free.push_back(b);
    for (std::size_t i = 0; i < free.size(); ++i) write(free[i]);
    for (Index b = 0; b < sizes_.batch; ++b) {
      if (source[as_size(b)] == b) continue;
      saved.fork(*this, b, 0);
      Index to = b, from = source[as_size(b)];
      for (source[as_size(to)] = to; from != b; from = std::exchange(source[as_size(to)], to)) {
        fork(*this, from, to);
        to = from;
      }
      fork(saved, 0, to);
    }
  }

  void resize_table(Index b, Index pages) {
    Table& table = pages_->tables[as_size(b)];
    while (std::ssize(table) > pages) {
      pages_->spare.give_back(std::move(table.back()));
      table.pop_back();
      show_run(b, std::ssize(table));
    }
    widen_runs(pages);
    table.resize(as_size(pages));
  }
  void set_table(Index b, Table table) {
    widen_runs(std::ssize(table));
    pages_->tables[as_size(b)].swap(table);
    for (Page& page : table) pages_->spare.give_back(std::move(page));
    show_runs(b);
  }

  // ---- Where each run lies, as kernels read it: [B][pages_->runs_row] ----

  /// Makes room for the runs of a sequence of this many pages.
  void widen_runs(Index pages) {
    const Index needed = pages * (sizes_.page / kernel::run_keys), runs_row = std::max(needed, 2 * pages_->runs_row);
    if (needed <= pages_->runs_row) return;
    std::array<std::vector<const std::byte*>, 2> wider;
    for (auto& runs : wider) runs.resize(as_size(sizes_.batch * runs_row));
    for (std::size_t part = 0; part < 2; ++part)
      for (Index b = 0; b < sizes_.batch; ++b)
        std::copy_n(pages_->runs[part].begin() + b * pages_->runs_row, pages_->runs_row,
                    wider[part].begin() + b * runs_row);
    pages_->runs.swap(wider);
    pages_->runs_row = runs_row;
  }
  /// The runs of page i of a sequence; null where there is no such page.
  void show_run(Index b, Index i) {
    const Table& table = pages_->tables[as_size(b)];
    const Page* const page = i < std::ssize(table) && table[as_size(i)].exists() ? &table[as_size(i)] : nullptr;
    const Index runs = sizes_.page / kernel::run_keys;
    for (std::size_t part = 0; part < 2; ++part)
      for (Index r = 0; r < runs && i * runs + r < pages_->runs_row; ++r)
        pages_->runs[part][as_size(b * pages_->runs_row + i * runs + r)] =
            page == nullptr ? nullptr : place_of(*page, part) + r * kernel::run_keys * sizes_.row_bytes[part];
  }
  void show_runs(Index b) {
    for (Index i = 0; i < ceil_div(pages_->runs_row * kernel::run_keys, sizes_.page); ++i) show_run(b, i);
  }

  CacheSizes sizes_;
  std::vector<Index> lengths_;     // tokens of each sequence
  std::array<Memory, 2> stretch_;  // keys and values [B,G,capacity], where there are no pages
  Indirect<Pages> pages_;          // or none
};

}  // namespace attn::detail
