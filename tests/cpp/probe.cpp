// Models for the tests of the protocol: `probe MODEL ADDRESS`.
#include <cmath>
#include <iostream>
#include <random>
#include <stdexcept>
#include <string>

#include "etalumis/random.hpp"
#include "etalumis/simulator.hpp"

using namespace etalumis;

/// Every family, scalar and in arrays, named and unnamed, with an array as the result.
Tensor families() {
    Tensor out(std::vector<double>(11));
    out[0] = sample(Normal(1.0, 2.0), "normal");
    out[1] = sample(Uniform(-1.0, 1.0));
    out[2] = static_cast<double>(sample(Categorical{1.0, 2.0, 3.0}, "categorical", false));
    out[3] = static_cast<double>(sample(Poisson(20.0)));
    out[4] = static_cast<double>(sample(Bernoulli(0.3)));
    out[5] = sample(Beta(2.0, 0.5), "beta", true, "explicit address");
    out[6] = sample(Exponential(0.2));
    out[7] = sample(Gamma(0.4, 2.0));
    out[8] = sample(LogNormal(0.5, 0.25));
    out[9] = static_cast<double>(sample(Binomial(100.0, 0.4)));
    out[10] = sample(Weibull(2.0, 3.0));
    const Tensor means = sample(Array<Normal>(Tensor({0.0, 1.0, 2.0, 3.0}, {2, 2}), 1.0), "means");
    const Tensor kinds = sample(Array<Categorical>(Tensor({1.0, 1.0, 0.0, 1.0}, {2, 2})));
    observe(Array<Normal>(means, Tensor({0.5, 2.0})), "image");
    observe(Poisson(3.0 + kinds[0]), 2.0, "known");
    observe(Normal(out[0], 1.0));
    tag(means, "means");
    tag(kinds[1]);
    return out;
}

/// Draws for ever; catches what it can.
void endless() {
    while (true) {
        try {
            if (sample(Uniform(0.0, 1.0), "u") < 0.0) return;
        } catch (const std::exception&) {
        }
    }
}

/// Throws in about half of its executions.
double fragile() {
    const double u = sample(Uniform(0.0, 1.0), "u");
    if (u > 0.5) throw std::runtime_error("fell over at u > 0.5");
    return u;
}

/// Its observation is impossible in about half of its executions.
double gate() {
    const double u = sample(Uniform(0.0, 1.0), "u");
    observe(Uniform(0.0, u), 0.5, "y");
    sample(Normal(0.0, 1.0), "after");
    return u;
}

double not_a_number() {
    const double u = sample(Uniform(0.0, 1.0), "u");
    observe(Normal(0.0, 1.0), std::sqrt(-u), "y");
    return u;
}

/// Numbers of a generator that knows nothing of PPX, and one distribution of the standard library.
double generator() {
    const double first = flat();
    RandomBits bits;
    std::uniform_int_distribution<int> die(1, 6);
    const int eyes = die(bits);
    return first + eyes;
}

template <int depth>
[[gnu::noinline]] double deeper(double x) {
    if constexpr (depth == 0) {
        return x + sample(Normal(x, 1.0), "leaf");
    } else {
        return deeper<depth - 1>(x) + 1.0;
    }
}

/// One statement reached by two call chains, and in a recursion.
double chains() {
    return deeper<1>(0.0) + deeper<3>(1.0) + deeper<1>(2.0);
}

int main(int argc, char** argv) {
    const std::string which = argc > 2 ? argv[1] : "", address = argc > 2 ? argv[2] : "";
    if (which == "families") serve(families, which, address);
    if (which == "endless") serve(endless, which, address);
    if (which == "endless_without_unwinding")
        Simulator(
            [] {
                for (int i = 0; i < 100; ++i) sample(Uniform(0.0, 1.0));
            },
            which)
            .unwind(false)
            .serve(address);
    if (which == "fragile") serve(fragile, which, address);
    if (which == "gate") serve(gate, which, address);
    if (which == "not_a_number") serve(not_a_number, which, address);
    if (which == "generator") serve(generator, which, address);
    if (which == "chains") serve(chains, which, address);
    std::cerr << "probe MODEL ADDRESS" << std::endl;
    return 2;
}
