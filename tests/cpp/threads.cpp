// Two simulators in two threads, each with its own executions, beside the same ones after each other. Prints nothing
// where they agree.
#include <cstdio>
#include <thread>
#include <vector>

#include "etalumis/random.hpp"
#include "etalumis/simulator.hpp"

using namespace etalumis;

double walk() {
    double x = 0.0;
    while (sample(Bernoulli(0.9)) == 1) x += sample(Normal(0.0, 1.0)) + flat();
    tag(x, "x");
    return x;
}

std::vector<double> values(std::uint64_t seed) {
    Simulator simulator(walk, "walk");
    Scripted scripted(simulator.addresses());
    Request request;
    request.seed = seed;
    request.count = 300;
    simulator.run(scripted, request);
    return scripted.columns().draws.values;
}

int main() {
    std::vector<double> one, two;
    std::thread first([&] { one = values(1); });
    std::thread second([&] { two = values(2); });
    first.join();
    second.join();
    if (one != values(1) || two != values(2) || one == two) {
        std::puts("threads disturb each other");
        return 1;
    }
    bool outside = false;
    std::thread stray([&] {
        try {
            sample(Normal(0.0, 1.0));
        } catch (const std::logic_error&) {
            outside = true;
        }
    });
    stray.join();
    return outside ? 0 : 1;
}
