// The simulators of the PPX benchmark: `ppx_simulators MODEL ADDRESS`, or `ppx_simulators address COUNT`, which prints
// the microseconds that a known address of eight frames takes.
#include <etalumis/simulator.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

using etalumis::Normal;
using etalumis::Uniform;

double marsaglia() {
    while (true) {
        const double x = etalumis::sample(Uniform(-1.0, 1.0));
        const double y = etalumis::sample(Uniform(-1.0, 1.0));
        const double s = x * x + y * y;
        if (s <= 0.0 || s >= 1.0) continue;
        const double mu = 1.0 + std::sqrt(5.0) * x * std::sqrt(-2.0 * std::log(s) / s);
        etalumis::observe(Normal(mu, std::sqrt(2.0)), "obs0");
        etalumis::observe(Normal(mu, std::sqrt(2.0)), "obs1");
        return mu;
    }
}

double many_draws() {
    double total = 0.0;
    for (int k = 0; k < 300; ++k) total += etalumis::sample(Uniform(0.0, 1.0));
    etalumis::observe(Normal(total, 1.0), "y");
    return total;
}

double busy() {
    const double x = etalumis::sample(Normal(0.0, 1.0), "x");
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    while (std::chrono::steady_clock::now() < end) continue;
    etalumis::observe(Normal(x, 1.0), "y");
    return x;
}

struct Probe {
    etalumis::CallStack stack;
    etalumis::AddressBook book;
    std::uint32_t found = 0;
};

[[gnu::noinline]] void statement(Probe& probe) {
    probe.stack.capture();
    probe.found += probe.book.id(probe.stack);
}

[[gnu::noinline]] void nested(Probe& probe, int depth) {
    if (depth > 0) {
        nested(probe, depth - 1);
    } else {
        statement(probe);
    }
    asm volatile("");  // a call, not a jump
}

int main(int argc, char** argv) {
    const std::string model = argc > 1 ? argv[1] : "";
    const std::string argument = argc > 2 ? argv[2] : "";
    if (model == "marsaglia") etalumis::serve(marsaglia, model, argument);
    if (model == "many_draws") etalumis::serve(many_draws, model, argument);
    if (model == "busy") etalumis::serve(busy, model, argument);
    if (model != "address") return 2;
    Probe probe;
    probe.stack.set_root(__builtin_frame_address(0));
    const int count = std::atoi(argument.c_str());
    nested(probe, 7);
    const auto start = std::chrono::steady_clock::now();
    for (int k = 0; k < count; ++k) nested(probe, 7);
    const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
    std::printf("%.6f %zu\n", spent.count() / count, probe.stack.frames().size());
}
