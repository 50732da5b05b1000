// The GNU Scientific Library: every random number of a gsl_rng is a draw.
//
//     gsl_rng* generator = gsl_rng_alloc(etalumis::gsl_generator());
//     double x = gsl_ran_gaussian(generator, 1.0);
#pragma once

#include <gsl/gsl_rng.h>

#include "etalumis/random.hpp"

namespace etalumis {

/// A generator type without a state: 32 bits of each flat number, or the number itself in (0, 1).
inline const gsl_rng_type* gsl_generator() {
    static const gsl_rng_type type = [] {
        gsl_rng_type made{};
        made.name = "etalumis";
        made.max = RandomBits::max();
        made.min = RandomBits::min();
        made.size = 0;
        made.set = [](void*, unsigned long) {};  // seeds mean nothing to it
        made.get = [](void*) { return static_cast<unsigned long>(RandomBits()()); };
        made.get_double = [](void*) { return flat(); };
        return made;
    }();
    return &type;
}

}  // namespace etalumis
