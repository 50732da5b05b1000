// What scripted executions count: the instances of statements, and the numbers by which a connection's two sides call
// base addresses and names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "etalumis/address.hpp"
#include "etalumis/hash_index.hpp"

namespace etalumis {

/// A statement in the code: base address, family, and which kind of statement.
struct Site {
    enum Kind : std::uint64_t { sample, observe, tag };
    static constexpr std::uint32_t none = detail::HashIndex::none;

    std::uint64_t key;
    std::uint64_t execution = 0;  // of which `count` is the count
    std::uint32_t count = 0;
    std::uint64_t batch = 0;  // in which `row` is the row of its last distribution
    std::uint32_t row = none;

    std::uint32_t next_instance(std::uint64_t of_execution) {
        if (execution != of_execution) count = 0;
        execution = of_execution;
        return ++count;
    }
};

class Sites {
  public:
    Site& at(std::uint32_t address, Site::Kind kind, std::uint64_t family) {
        const std::uint64_t key = address | static_cast<std::uint64_t>(kind) << 40 | family << 32;
        if (last_.size() <= address) last_.resize(address + 1, Site::none);
        std::uint32_t& last = last_[address];  // most addresses belong to one statement
        if (last != Site::none && sites_[last].key == key) return sites_[last];
        const std::uint64_t hash = detail::mix(key, 1);
        last = index_.find(hash, [&](std::uint32_t i) { return sites_[i].key == key; });
        if (last == Site::none) {
            last = static_cast<std::uint32_t>(sites_.size());
            index_.insert(hash, last);
            sites_.push_back({key});
        }
        return sites_[last];
    }

  private:
    detail::HashIndex index_;
    std::vector<Site> sites_;
    std::vector<std::uint32_t> last_;  // by base address
};

/// Numbers of base addresses and names, in the order in which they are first sent, for the life of a connection.
class Numbering {
  public:
    static constexpr std::uint32_t none = detail::HashIndex::none;

    explicit Numbering(AddressBook& book) : book_(book) {}

    /// The number of a base address, which the engine will be told where it is new.
    std::uint32_t number(std::uint32_t base) {
        if (!knows(base)) {
            add(base);
            new_addresses_.push_back(book_[base]);
        }
        return numbers_[base];
    }
    /// The engine names an address.
    void hear(const std::string& address) {
        const std::uint32_t base = book_.id(address);
        if (!knows(base)) add(base);
    }
    /// The base address of a number, or `none` where nobody sent it.
    std::uint32_t base(std::uint32_t number) const { return number < bases_.size() ? bases_[number] : none; }

    std::uint32_t name(std::string_view text) {
        const std::uint64_t hash = detail::hash_text(text);
        const std::uint32_t known = name_index_.find(hash, [&](std::uint32_t i) { return names_[i] == text; });
        if (known != none) return known;
        const auto made = static_cast<std::uint32_t>(names_.size());
        name_index_.insert(hash, made);
        names_.emplace_back(text);
        new_names_.emplace_back(text);
        return made;
    }
    const std::string& name_text(std::uint32_t name) const { return names_[name]; }

    const std::vector<std::string>& new_addresses() const { return new_addresses_; }
    const std::vector<std::string>& new_names() const { return new_names_; }
    /// The engine has been told of the new addresses and names.
    void sent() {
        new_addresses_.clear();
        new_names_.clear();
    }
    /// The engine will not be told: new addresses lose their numbers. (Names keep theirs and are told next time: the
    /// engine numbers none of its own.)
    void discard() {
        for (; !new_addresses_.empty(); new_addresses_.pop_back(), bases_.pop_back()) numbers_[bases_.back()] = none;
    }

  private:
    bool knows(std::uint32_t base) const { return base < numbers_.size() && numbers_[base] != none; }
    void add(std::uint32_t base) {
        if (numbers_.size() <= base) numbers_.resize(base + 1, none);
        numbers_[base] = static_cast<std::uint32_t>(bases_.size());
        bases_.push_back(base);
    }

    AddressBook& book_;
    std::vector<std::uint32_t> numbers_, bases_;  // number by base address, and back
    detail::HashIndex name_index_;
    std::vector<std::string> names_;
    std::vector<std::string> new_addresses_, new_names_;
};

}  // namespace etalumis
