// A small generator of simple English stories whose exact entropy is known: what a perfect model of them would score.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace attn::examples {

/// Random numbers that depend on a seed alone, the same on every machine (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  /// In [0,1).
  double operator()() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>((*this)() * static_cast<double>(n)); }

 private:
  std::uint64_t state_;
};

/// Something that a story chooses once and may name several times, in several forms: "the fox", "He", "his".
struct Choice {
  std::string name;
  std::vector<std::vector<std::string>> options;  // each is a list of forms, as likely as the others
};

/// A grammar of stories. A plot is a text with places like {hero.1}, the second form of what was chosen as hero. A story
/// chooses a plot, and then everything that the plot names, independently. Where a choice is named first, no option's form
/// is the beginning of another's, so that a text tells its choices, and the entropy of texts is that of choices.
class Stories {
 public:
  Stories() {
    choices_ = {
        {"hero",
         {{"girl", "Lily", "She", "her"},
          {"boy", "Tom", "He", "his"},
          {"cat", "Mia", "She", "her"},
          {"dog", "Max", "He", "his"},
          {"fox", "Ruby", "She", "her"},
          {"bear", "Ben", "He", "his"}}},
        {"mood", {{"little"}, {"happy"}, {"brave"}, {"shy"}}},
        {"friend", {{"Anna", "bird"}, {"Sam", "frog"}, {"Zoe", "mouse"}, {"Pip", "duck"}}},
        {"place", {{"park"}, {"garden"}, {"forest"}, {"river"}}},
        {"thing", {{"ball"}, {"kite"}, {"boat"}, {"hat"}, {"drum"}, {"lamp"}}},
        {"colour", {{"red"}, {"blue"}, {"green"}, {"yellow"}}},
        {"feeling", {{"sad"}, {"tired"}, {"lost"}, {"scared"}}},
        {"ending", {{"They played all day."}, {"They were good friends."}, {"Then they went home."}}},
    };
    plots_ = {
        " Once upon a time there was a {mood.0} {hero.0} named {hero.1}. {hero.2} went to the {place.0} with {hero.3} "
        "{colour.0} {thing.0}. There {hero.1} met a {friend.1} named {friend.0}. {friend.0} liked the {thing.0}. "
        "{ending.0}",
        " One day {hero.1} the {hero.0} lost {hero.3} {colour.0} {thing.0} in the {place.0}. {hero.2} was {feeling.0}. "
        "{friend.0} the {friend.1} found the {thing.0} and gave it to {hero.1}. {ending.0}",
        " {friend.0} was a {mood.0} {friend.1}. {friend.0} lived near the {place.0} and was {feeling.0}. Then {hero.1} "
        "the {hero.0} came with a {colour.0} {thing.0}. {hero.2} said: Do not be {feeling.0}! {ending.0}",
    };
  }

  /// A story, drawn at random.
  [[nodiscard]] std::string draw(Random& random) const {
    const std::string& plot = plots_[random.below(plots_.size())];
    std::vector<std::size_t> chosen;
    for (const Choice& choice : choices_) chosen.push_back(random.below(choice.options.size()));
    std::string story;
    for_each_part(plot, [&](std::string_view text, std::size_t choice, std::size_t form) {
      story += text;
      if (choice < choices_.size()) story += choices_[choice].options[chosen[choice]][form];
    });
    return story;
  }

  /// In how many ways the grammar makes this text: 1 for its stories, 0 for all other texts.
  [[nodiscard]] int parses(std::string_view story) const {
    int count = 0;
    for (const std::string& plot : plots_) {
      std::vector<Part> parts;
      for_each_part(plot, [&](std::string_view text, std::size_t choice, std::size_t form) {
        parts.push_back({text, choice, form});
      });
      std::vector<std::size_t> chosen(choices_.size(), none);
      count += parses(parts, 0, story, chosen);
    }
    return count;
  }

  /// Entropy in nats for each token, where a story is its characters and one token for its end.
  [[nodiscard]] double entropy_per_token() const {
    double entropy = 0.0, tokens = 0.0;
    for (const std::string& plot : plots_) {
      std::vector<bool> seen(choices_.size());
      for_each_part(plot, [&](std::string_view text, std::size_t choice, std::size_t form) {
        tokens += static_cast<double>(text.size());
        if (choice == choices_.size()) return;
        const auto& options = choices_[choice].options;
        if (!seen[choice]) entropy += std::log(static_cast<double>(options.size()));
        seen[choice] = true;
        for (const auto& option : options)
          tokens += static_cast<double>(option[form].size()) / static_cast<double>(options.size());
      });
    }
    const auto plots = static_cast<double>(plots_.size());
    return (std::log(plots) + entropy / plots) / (tokens / plots + 1.0);
  }

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  struct Part {
    std::string_view text;
    std::size_t choice, form;
  };

  /// Calls use(text, choice, form) for each part of a plot: a text and what follows it; after the last there is no choice.
  template <class Use>
  void for_each_part(std::string_view plot, const Use& use) const {
    for (std::size_t at = 0; at <= plot.size();) {
      const std::size_t open = plot.find('{', at);
      if (open == std::string_view::npos) return use(plot.substr(at), choices_.size(), std::size_t{0});
      const std::size_t dot = plot.find('.', open);
      const std::string_view name = plot.substr(open + 1, dot - open - 1);
      std::size_t choice = 0;
      while (choices_[choice].name != name) ++choice;
      use(plot.substr(at, open - at), choice, static_cast<std::size_t>(plot[dot + 1] - '0'));
      at = dot + 3;
    }
  }

  int parses(const std::vector<Part>& parts, std::size_t i, std::string_view story,
             std::vector<std::size_t>& chosen) const {
    if (i == parts.size()) return story.empty() ? 1 : 0;
    const Part& part = parts[i];
    if (!story.starts_with(part.text)) return 0;
    story.remove_prefix(part.text.size());
    if (part.choice == choices_.size()) return parses(parts, i + 1, story, chosen);
    const auto& options = choices_[part.choice].options;
    const std::size_t fixed = chosen[part.choice];
    int count = 0;
    for (std::size_t option = 0; option < options.size(); ++option) {
      const std::string& form = options[option][part.form];
      if ((fixed != none && fixed != option) || !story.starts_with(form)) continue;
      chosen[part.choice] = option;
      count += parses(parts, i + 1, story.substr(form.size()), chosen);
    }
    chosen[part.choice] = fixed;
    return count;
  }

  std::vector<Choice> choices_;
  std::vector<std::string> plots_;
};

}  // namespace attn::examples
