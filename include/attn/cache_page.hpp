// Floor 1. A page of a cache: memory for some tokens that several sequences, and several caches, may share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "error.hpp"

namespace attn::detail {

// Templates over the memory, so that programs without pages compile none of this.

/// A page, or none. Copies share the page, and the last of them frees it; they may be used from several threads, as those of
/// a std::shared_ptr may.
template <class Memory>
class CachePage {
  struct Page {
    std::byte* data;
    std::shared_ptr<Memory> slab;  ///< what the page is a part of
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

  /// Adds `count` pages of `bytes` to `pages`, which has room for them: parts of one slab.
  static void make(std::vector<CachePage>& pages, Index count, Index bytes) {
    const auto slab = std::make_shared<Memory>(static_cast<std::size_t>(count * bytes));
    for (Index i = 0; i < count; ++i) pages.push_back(CachePage(new Page{slab->data() + i * bytes, slab}));
  }

  /// Where its memory begins; null where there is none.
  [[nodiscard]] std::byte* data() const { return page_ == nullptr ? nullptr : page_->data; }
  /// Whether others hold it too, so that it must not be written to. Where they have let go, what they read comes before what
  /// is then written.
  [[nodiscard]] bool is_shared() const {
    return page_ != nullptr && page_->holders.load(std::memory_order_acquire) > 1;
  }

 private:
  explicit CachePage(Page* page) : page_(page) {}

  Page* page_ = nullptr;
};

/// Pages of one size that no sequence holds. A copy has none.
template <class Memory>
class SparePages {
  using Page = CachePage<Memory>;

  /// As many small pages as make a large page of memory are allocated together, once there are that many.
  static constexpr Index slab_bytes = Index{1} << 21;

 public:
  SparePages() = default;
  SparePages(const SparePages& other) : made_(other.made_) {}
  SparePages(SparePages&&) noexcept = default;
  SparePages& operator=(SparePages other) noexcept {
    std::swap(made_, other.made_);
    pages_.swap(other.pages_);
    return *this;
  }
  ~SparePages() = default;

  [[nodiscard]] Index count() const { return std::ssize(pages_); }

  /// A page of this many bytes, which nobody else holds. Its contents are not set.
  [[nodiscard]] Page take(Index bytes) {
    if (pages_.empty()) {
      const Index together = std::max<Index>(slab_bytes / bytes, 1), count = made_ < together ? 1 : together;
      pages_.reserve(static_cast<std::size_t>(made_ + count));  // so that giving pages back cannot fail
      Page::make(pages_, count, bytes);
      made_ += count;
    }
    Page page = std::move(pages_.back());
    pages_.pop_back();
    return page;
  }
  /// Takes a page back, unless others hold it too. Cannot fail: where the list is full, the page is freed.
  void give_back(Page page) noexcept {
    if (page.data() != nullptr && !page.is_shared() && pages_.size() < pages_.capacity())
      pages_.push_back(std::move(page));
  }
  void release() {
    made_ -= count();
    std::vector<Page>().swap(pages_);
  }

 private:
  std::vector<Page> pages_;
  Index made_ = 0;  // pages allocated so far
};

}  // namespace attn::detail
