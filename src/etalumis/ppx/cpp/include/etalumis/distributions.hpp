// The eleven families of PPX.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "etalumis/continuous.hpp"
#include "etalumis/discrete.hpp"

namespace etalumis {

/// Calls `use` with a null pointer to the family of this number on the wire.
template <class Use>
void with_family(int tag, Use&& use) {
    const auto choose = [&](auto*... families) {
        return ((std::remove_pointer_t<decltype(families)>::tag == tag && (use(families), true)) || ...);
    };
    const bool known =
        choose(static_cast<Normal*>(nullptr), static_cast<Uniform*>(nullptr), static_cast<Categorical*>(nullptr),
               static_cast<Poisson*>(nullptr), static_cast<Bernoulli*>(nullptr), static_cast<Beta*>(nullptr),
               static_cast<Exponential*>(nullptr), static_cast<Gamma*>(nullptr), static_cast<LogNormal*>(nullptr),
               static_cast<Binomial*>(nullptr), static_cast<Weibull*>(nullptr));
    if (!known) throw std::invalid_argument("no family has the number " + std::to_string(tag));
}

}  // namespace etalumis
