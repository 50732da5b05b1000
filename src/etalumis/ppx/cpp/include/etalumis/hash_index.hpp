// A hash table from 64-bit hashes to positions: what makes interning cost tens of nanoseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace etalumis::detail {

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(hash ^ word) * 0x9E3779B97F4A7C15u;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64) ^ 0x2545F4914F6CDD1Du;
}

inline std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t hash = 0x8BB84B93962EACC9u) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    hash = mix(hash, size);
    for (; size >= 8; size -= 8, bytes += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes, 8);
        hash = mix(hash, word);
    }
    std::uint64_t rest = 0;
    if (size > 0) std::memcpy(&rest, bytes, size);
    return mix(hash, rest);
}

inline std::uint64_t hash_text(std::string_view text) {
    return hash_bytes(text.data(), text.size());
}

/// Open addressing with linear probing; the keys themselves stay with the user, who compares them.
class HashIndex {
  public:
    static constexpr std::uint32_t none = 0xFFFFFFFFu;

    /// The position stored under `hash` for which `equal(position)` holds, or `none`.
    template <class Equal>
    std::uint32_t find(std::uint64_t hash, Equal&& equal) const {
        if (slots_.empty()) return none;
        for (std::size_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
            const Slot& slot = slots_[i];
            if (slot.position == none) return none;
            if (slot.hash == hash && equal(slot.position)) return slot.position;
        }
    }
    void insert(std::uint64_t hash, std::uint32_t position) {
        if (2 * (size_ + 1) > slots_.size()) grow();
        place({hash, position});
        ++size_;
    }
    void clear() {
        if (size_ == 0) return;
        slots_.assign(slots_.size(), Slot{});
        size_ = 0;
    }

  private:
    struct Slot {
        std::uint64_t hash = 0;
        std::uint32_t position = none;
    };
    void place(const Slot& slot) {
        std::size_t i = slot.hash & (slots_.size() - 1);
        while (slots_[i].position != none) i = (i + 1) & (slots_.size() - 1);
        slots_[i] = slot;
    }
    void grow() {
        std::vector<Slot> old(slots_.empty() ? 64 : 2 * slots_.size());
        old.swap(slots_);
        for (const Slot& slot : old) {
            if (slot.position != none) place(slot);
        }
    }
    std::vector<Slot> slots_;
    std::size_t size_ = 0;
};

}  // namespace etalumis::detail
