// Counter-based uniform numbers: the only source of randomness of an execution.
//
// Every statement of every trace owns a region of one Philox4x64-10 sequence (Salmon, Moraes, Dror and Shaw, SC'11),
// so that a draw depends on (seed, trace, statement) alone. The Python side computes the same numbers.
//
//   key     = (seed, trace index)
//   counter = (ordinal + 1, refill, 0,       kind)       scalar statements
//             (element + 1, refill, ordinal, kind + 2)   each element of an array statement
//   kind    = 0 for sample, 1 for observe; ordinal counts the statements of a kind within one execution from 0.
//   refill  = 0 for the first four uniforms, 1 for the next four, and so on.
//
// A 64-bit output r becomes the uniform ((r >> 12) + 1/2) / 2^52: exact, never 0 or 1.
#pragma once

#include <array>
#include <cstdint>

namespace etalumis {

/// The Philox key of one execution.
struct StreamKey {
    std::uint64_t seed = 0;
    std::uint64_t index = 0;
};

enum class Kind : std::uint64_t { sample = 0, observe = 1 };

namespace detail {

using Block = std::array<std::uint64_t, 4>;

inline Block philox(Block counter, StreamKey key) {
    __extension__ using Wide = unsigned __int128;
    for (int round = 0; round < 10; ++round) {
        const Wide a = static_cast<Wide>(0xD2E7470EE14C6C93u) * counter[0];
        const Wide b = static_cast<Wide>(0xCA5A826395121157u) * counter[2];
        counter = {static_cast<std::uint64_t>(b >> 64) ^ counter[1] ^ key.seed, static_cast<std::uint64_t>(b),
                   static_cast<std::uint64_t>(a >> 64) ^ counter[3] ^ key.index, static_cast<std::uint64_t>(a)};
        key.seed += 0x9E3779B97F4A7C15u;
        key.index += 0xBB67AE8584CAA73Bu;
    }
    return counter;
}

}  // namespace detail

/// The uniform numbers in (0, 1) of one scalar statement, or of one element of an array statement.
class Uniforms {
  public:
    Uniforms(StreamKey key, std::uint64_t low, std::uint64_t word2, std::uint64_t word3)
        : key_(key), counter_{low + 1, 0, word2, word3} {}

    double operator()() {
        if (place_ == 4) {
            block_ = detail::philox(counter_, key_);
            ++counter_[1];
            place_ = 0;
        }
        return (static_cast<double>(block_[place_++] >> 12) + 0.5) * 0x1p-52;
    }

  private:
    StreamKey key_;
    detail::Block counter_;
    detail::Block block_{};
    unsigned place_ = 4;
};

/// One statement's place in the stream: hands out the numbers of the statement or of its elements.
class Statement {
  public:
    Statement(StreamKey key, Kind kind, std::uint64_t ordinal)
        : key_(key), kind_(static_cast<std::uint64_t>(kind)), ordinal_(ordinal) {}

    Uniforms scalar() const { return {key_, ordinal_, 0, kind_}; }
    Uniforms element(std::uint64_t i) const { return {key_, i, ordinal_, kind_ + 2}; }

  private:
    StreamKey key_;
    std::uint64_t kind_;
    std::uint64_t ordinal_;
};

}  // namespace etalumis
