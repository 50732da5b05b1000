// Any code's random numbers through PPX: a plain `flat()` and a uniform random bit generator. Each number is a draw of
// Uniform(0, 1) at the call stack from which it was asked for.
//
// Outside of a running model (a generator that warms up) the numbers come from a stream of their own, the same ones in
// every process, and belong to no trace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "etalumis/simulator.hpp"

namespace etalumis {

/// The next number, in (0, 1).
[[gnu::noinline]] inline double flat(bool control = true) {
    static thread_local std::uint64_t spare = 0;
    const Uniform uniform(0.0, 1.0);
    double value = 0.0;
    if (Execution* execution = Execution::current()) {
        execution->stack.capture();
        execution->sample(uniform, {}, control, &value);
    } else {
        uniform.draw(Statement({0, UINT64_MAX}, Kind::sample, spare++), &value);
    }
    return std::min(std::max(value, 0x1p-53), 1.0 - 0x1p-53);  // engines may propose the ends, which generators exclude
}

/// A uniform random bit generator as the standard library wants it: 32 bits from each flat number.
class RandomBits {
  public:
    using result_type = std::uint32_t;
    static constexpr result_type min() { return 0; }
    static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }
    result_type operator()() const { return static_cast<result_type>(flat() * 0x1p32); }
};

}  // namespace etalumis
