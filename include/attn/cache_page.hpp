// Floor 1. Pages of a cache: memory for some tokens that several sequences, and several caches, may share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "error.hpp"

namespace attn::detail {

// Templates over the memory, so that programs without pages compile none of this.

/// A page, or none: one of several that are allocated together, in a bundle. Copies share the page, and the last of them
/// frees it; they may be used from several threads, as those of a std::shared_ptr may.
template <class Memory>
class CachePage {
  struct Page {
    std::shared_ptr<Memory> bundle;
    Index number;
    std::atomic<Index> holders = 1;
  };

 public:
  CachePage() = default;
  CachePage(const CachePage& other) : page_(other.page_) {
    if (page_ != nullptr) page_->holders.fetch_add(1, std::memory_order_relaxed);
  }
  CachePage(CachePage&& other) noexcept : page_(std::exchange(other.page_, nullptr)) {}
  CachePage& operator=(CachePage other) noexcept {
    std::swap(page_, other.page_);
    return *this;
  }
  ~CachePage() {
    if (page_ != nullptr && page_->holders.fetch_sub(1, std::memory_order_acq_rel) == 1) delete page_;
  }

  /// Appends the `count` pages of a new bundle of `bytes` to `pages`, which has room for them.
  static void make(std::vector<CachePage>& pages, Index count, Index bytes) {
    const auto bundle = std::make_shared<Memory>(static_cast<std::size_t>(bytes));
    for (Index i = 0; i < count; ++i) pages.push_back(CachePage(new Page{bundle, i}));
  }

  [[nodiscard]] bool exists() const { return page_ != nullptr; }
  /// Where the bundle begins, and which of its pages this is.
  [[nodiscard]] std::byte* bundle() const { return page_->bundle->data(); }
  [[nodiscard]] Index number() const { return page_->number; }
  /// Pages of its bundle that have not been freed, spare ones included.
  [[nodiscard]] Index pages_of_bundle() const { return static_cast<Index>(page_->bundle.use_count()); }
  /// Whether others hold it too, so that it must not be written to. If not, all that earlier holders read happened before
  /// what is then written.
  [[nodiscard]] bool is_shared() const { return exists() && page_->holders.load(std::memory_order_acquire) > 1; }

  /// Pages by where they lie.
  friend bool operator<(const CachePage& a, const CachePage& b) {
    if (a.bundle() != b.bundle()) return std::less<>{}(a.bundle(), b.bundle());
    return a.number() < b.number();
  }
  friend bool operator==(const CachePage& a, const CachePage& b) { return a.page_ == b.page_; }
  /// Whether this page lies right behind another.
  [[nodiscard]] bool follows(const CachePage& other) const {
    return other.exists() && bundle() == other.bundle() && number() == other.number() + 1;
  }

 private:
  explicit CachePage(Page* page) : page_(page) {}

  Page* page_ = nullptr;
};

/// Pages of one size that no sequence holds. A copy has none.
template <class Memory>
class SparePages {
  using Page = CachePage<Memory>;

 public:
  /// `bundle_pages` pages are allocated together, as `bundle_bytes`.
  SparePages(Index bundle_pages, Index bundle_bytes) : bundle_pages_(bundle_pages), bundle_bytes_(bundle_bytes) {}
  SparePages(const SparePages& other)
      : bundle_pages_(other.bundle_pages_), bundle_bytes_(other.bundle_bytes_), made_(other.made_) {}
  SparePages(SparePages&&) noexcept = default;
  SparePages& operator=(SparePages other) noexcept {
    std::swap(bundle_pages_, other.bundle_pages_);
    std::swap(bundle_bytes_, other.bundle_bytes_);
    std::swap(made_, other.made_);
    pages_.swap(other.pages_);
    return *this;
  }
  ~SparePages() = default;

  [[nodiscard]] Index count() const { return std::ssize(pages_); }

  /// Takes the first of `wanted` pages out of the spare ones: the page that follows `before`, if it is spare, since attention
  /// reads neighbours as one stretch of memory. Nobody else holds it. Its contents are not set.
  [[nodiscard]] Page take(const Page& before, Index wanted) {
    if (pages_.empty()) {
      pages_.reserve(static_cast<std::size_t>(made_ + bundle_pages_));  // so that giving pages back cannot fail
      Page::make(pages_, bundle_pages_, bundle_bytes_);
      made_ += bundle_pages_;
    }
    const auto at = best_after(before, wanted);
    Page page = std::move(*at);
    pages_.erase(at);
    return page;
  }
  /// Takes a page back, unless others hold it too. Cannot fail: where the list is full, the page is freed.
  void give_back(Page page) noexcept {
    if (!page.exists() || page.is_shared() || pages_.size() == pages_.capacity()) return;
    pages_.insert(std::lower_bound(pages_.begin(), pages_.end(), page), std::move(page));
  }
  /// Frees the bundles of which all pages are spare.
  void release() {
    for (auto at = pages_.begin(); at != pages_.end();) {
      const auto end = std::find_if(at, pages_.end(), [&](const Page& page) { return page.bundle() != at->bundle(); });
      const Index spare = end - at;
      const bool whole = spare == at->pages_of_bundle();
      if (whole) made_ -= spare;
      at = whole ? pages_.erase(at, end) : end;
    }
  }

 private:
  /// The page that follows `before`; else one of the longest row of neighbours: its first where the row begins a bundle,
  /// otherwise one amid the row, so that a sequence that ends before it can still grow.
  [[nodiscard]] typename std::vector<Page>::iterator best_after(const Page& before, Index wanted) {
    auto longest = pages_.begin();
    Index most = 0;
    for (auto at = pages_.begin(), end = at; at != pages_.end(); at = end) {
      if (at->follows(before)) return at;
      for (end = at + 1; end != pages_.end() && end->follows(end[-1]);) ++end;
      if (end - at > most) most = end - at, longest = at;
    }
    return longest->number() == 0 ? longest : longest + std::max<Index>(most - wanted, 0) / 2;
  }

  Index bundle_pages_, bundle_bytes_;
  std::vector<Page> pages_;  // by where they lie
  Index made_ = 0;           // pages allocated so far
};

}  // namespace attn::detail
