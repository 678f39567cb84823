// Floor 0. How byte pair encodings cut a text into words before they merge: the rules that models state as regular
// expressions, written out by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "unicode_classes.hpp"

namespace attn {

/// Where a text is cut; merges stay inside of a word. L stands for letters, N for numbers, as in regular expressions.
enum class WordRule : std::uint8_t {
  /// GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?[^\sLN]+|\s+(?!\S)|\s+
  gpt2,
  /// As gpt2, with every digit a word of its own: SmolLM, Command R, StarCoder.
  gpt2_digits,
  /// Llama 3: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nLN]?L+|N{1,3}| ?[^\sLN]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  llama3,
  /// As llama3, with every digit a word of its own: Qwen 2 and 3.
  qwen2,
  /// GPT-4o, gpt-oss, Llama 4: as llama3, but words also end before upper case that follows lower case, and
  /// contractions stay with their word.
  gpt4o,
};

}  // namespace attn

namespace attn::detail {

/// Cuts a text into words. Every rule takes at least one character, and looks at each of them a few times at most.
class WordCutter {
 public:
  WordCutter(WordRule rule, std::string_view text) : rule_(rule), text_(text) {}

  /// The next word; empty at the end.
  [[nodiscard]] std::string_view next() {
    if (at_ == text_.size()) return {};
    const std::size_t begin = at_;
    at_ = end_of_word(begin);
    return text_.substr(begin, at_ - begin);
  }

 private:
  static constexpr std::size_t none = 0;  // no word ends at the beginning

  [[nodiscard]] bool old() const { return rule_ == WordRule::gpt2 || rule_ == WordRule::gpt2_digits; }

  [[nodiscard]] std::size_t end_of_word(std::size_t at) const {
    const Char first = at_char(at);
    if (rule_ != WordRule::gpt4o && first.point == '\'')
      if (const std::size_t end = end_of_contraction(at); end != none) return end;
    if (const std::size_t end = end_of_letters(at, first); end != none) return end;
    if (const std::size_t end = end_of_number(at, first); end != none) return end;
    if (const std::size_t end = end_of_symbols(at, first); end != none) return end;
    return end_of_spaces(at);
  }

  // ---- Characters, and runs of them ----

  [[nodiscard]] Char at_char(std::size_t at) const { return at < text_.size() ? char_at(text_, at) : Char{}; }
  template <class F>
  [[nodiscard]] std::size_t end_of_run(std::size_t at, const F& belongs) const {
    for (Char c = at_char(at); c.size > 0 && belongs(c); c = at_char(at)) at += c.size;
    return at;
  }
  [[nodiscard]] static bool is_line_end(const Char& c) { return c.point == '\r' || c.point == '\n'; }
  /// Neither letter nor number nor space. Marks are symbols.
  [[nodiscard]] static bool is_symbol(const Char& c) {
    return c.size > 0 && (c.kind == CharClass::other || c.kind == CharClass::mark);
  }

  // ---- The alternatives ----

  /// 's, 't, 're, 've, 'm, 'll, 'd. The newer rules take upper case too, and the long s that folds to s.
  [[nodiscard]] std::size_t end_of_contraction(std::size_t at) const {
    const Char a = at_char(at + 1);
    const auto folded = [&](const Char& c) {
      if (old()) return c.point;
      return c.point == 0x17F ? 's' : c.point >= 'A' && c.point <= 'Z' ? c.point + 32 : c.point;
    };
    if (a.size == 0) return none;
    const std::uint32_t first = folded(a);
    const std::size_t after = at + 1 + a.size;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return after;
    const Char b = at_char(after);
    const std::uint32_t second = folded(b);
    const bool two =
        (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return two ? after + b.size : none;
  }

  [[nodiscard]] std::size_t end_of_letters(std::size_t at, const Char& first) const {
    if (rule_ == WordRule::gpt4o) return end_of_cased_letters(at, first);
    std::size_t begin = at;
    // One character may come before the letters: a space with the older rules, with the newer ones nearly any.
    const bool may_lead = old() ? first.point == ' ' : !is_letter(first.kind) && may_lead_letters(first);
    if (may_lead) begin += first.size;
    const std::size_t end = end_of_run(begin, [](const Char& c) { return is_letter(c.kind); });
    return end > begin ? end : none;
  }
  [[nodiscard]] static bool may_lead_letters(const Char& c) {
    return !is_line_end(c) && !is_letter(c.kind) && c.kind != CharClass::number;
  }

  /// Upper* lower+, else upper+ lower*, where letters without case and marks are both; then a contraction.
  [[nodiscard]] std::size_t end_of_cased_letters(std::size_t at, const Char& first) const {
    const bool may_lead = may_lead_letters(first);
    std::size_t end = none;
    if (may_lead) end = end_of_lower(at + first.size);
    if (end == none) end = end_of_lower(at);
    if (end == none && may_lead) end = end_of_upper(at + first.size);
    if (end == none) end = end_of_upper(at);
    if (end == none || at_char(end).point != '\'') return end;
    const std::size_t contraction = end_of_contraction(end);
    return contraction != none ? contraction : end;
  }
  [[nodiscard]] static bool is_both(const Char& c) { return c.kind == CharClass::letter || c.kind == CharClass::mark; }
  [[nodiscard]] static bool is_upper(const Char& c) { return c.kind == CharClass::upper || is_both(c); }
  [[nodiscard]] static bool is_lower(const Char& c) { return c.kind == CharClass::lower || is_both(c); }
  /// Upper* lower+: where nothing of lower case follows, the run of upper case gives back as little as will do.
  [[nodiscard]] std::size_t end_of_lower(std::size_t at) const {
    std::size_t end = at, after_both = none;
    for (Char c = at_char(end); c.size > 0 && is_upper(c); c = at_char(end)) {
      end += c.size;
      if (is_both(c)) after_both = end;
    }
    const std::size_t lower = end_of_run(end, is_lower);
    return lower > end ? lower : after_both;
  }
  /// Upper+ lower*, where upper* lower+ has failed: no lower case follows.
  [[nodiscard]] std::size_t end_of_upper(std::size_t at) const {
    const std::size_t end = end_of_run(at, is_upper);
    return end > at ? end : none;
  }

  [[nodiscard]] std::size_t end_of_number(std::size_t at, const Char& first) const {
    std::size_t begin = at;
    if (rule_ == WordRule::gpt2 && first.point == ' ') begin += first.size;
    const int most = rule_ == WordRule::gpt2 ? 0 : rule_ == WordRule::llama3 || rule_ == WordRule::gpt4o ? 3 : 1;
    int count = 0;
    const std::size_t end =
        end_of_run(begin, [&](const Char& c) { return c.kind == CharClass::number && (most == 0 || count++ < most); });
    return end > begin ? end : none;
  }

  [[nodiscard]] std::size_t end_of_symbols(std::size_t at, const Char& first) const {
    const std::size_t begin = first.point == ' ' ? at + first.size : at;
    const std::size_t end = end_of_run(begin, is_symbol);
    if (end == begin) return none;
    if (old()) return end;
    const bool with_slash = rule_ == WordRule::gpt4o;
    return end_of_run(end, [&](const Char& c) { return is_line_end(c) || (with_slash && c.point == '/'); });
  }

  /// Spaces up to their last line end, with the newer rules; else all but the last, which goes with what follows; else
  /// one.
  [[nodiscard]] std::size_t end_of_spaces(std::size_t at) const {
    std::size_t end = at, last = at, after_line = none;
    for (Char c = at_char(end); c.size > 0 && c.kind == CharClass::space; c = at_char(end)) {
      last = end;
      end += c.size;
      if (is_line_end(c)) after_line = end;
    }
    if (!old() && after_line != none) return after_line;
    // A digit that stands apart begins what it stands in anew: to the spaces before it, the text ends there.
    const bool at_end =
        end == text_.size() || (rule_ == WordRule::gpt2_digits && at_char(end).kind == CharClass::number);
    return at_end || last == at ? end : last;
  }

  WordRule rule_;
  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace attn::detail
