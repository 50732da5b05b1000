// Times, as one JSON object: scripted prior executions of Marsaglia's model with their columns written as a message,
// and a known address of eight frames.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "etalumis/simulator.hpp"

using namespace etalumis;

namespace {

using Clock = std::chrono::steady_clock;

/// Of this thread alone: what else the machine does counts less.
double processor_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double polar_normal(double mean, double stddev) {
    while (true) {
        const double x = sample(Uniform(-1.0, 1.0));
        const double y = sample(Uniform(-1.0, 1.0));
        const double s = x * x + y * y;
        if (s > 0.0 && s < 1.0) return mean + stddev * x * std::sqrt(-2.0 * std::log(s) / s);
    }
}

double marsaglia() {
    const double mu = polar_normal(1.0, std::sqrt(5.0));
    observe(Normal(mu, std::sqrt(2.0)), "obs0");
    observe(Normal(mu, std::sqrt(2.0)), "obs1");
    tag(mu, "mu");
    return mu;
}

template <int depth>
[[gnu::noinline]] void descend(double& seconds, int repeats) {
    if constexpr (depth == 0) {
        CallStack stack = Execution::current()->stack;
        AddressBook book;
        for (int i = 0; i < repeats; ++i) {
            const double start = processor_seconds();
            for (int k = 0; k < 500; ++k) {
                stack.capture();
                book.id(stack);
            }
            seconds = std::min(seconds, (processor_seconds() - start) / 500);
        }
    } else {
        descend<depth - 1>(seconds, repeats);
        asm volatile("");
    }
}

void eight_frames() {
    double seconds = 1.0;
    descend<7>(seconds, 200);
    tag(seconds, "seconds");
}

int main() {
    Simulator simulator(marsaglia, "marsaglia");
    Scripted scripted(simulator.addresses());
    wire::Writer out;
    Request request;
    request.count = 1000;
    double best = 0.0;
    std::size_t bytes = 0;
    for (int i = 0; i < 20; ++i) {
        request.first_index = static_cast<std::uint64_t>(1000 * i);
        const auto start = Clock::now();
        simulator.run(scripted, request);
        scripted.write(out);
        best = std::max(best, request.count / since(start));
        bytes = out.bytes().size();
    }
    Simulator deep(eight_frames, "eight_frames");
    Scripted once(deep.addresses());
    deep.run(once, Request());
    std::printf("{\"traces_per_s\": %.0f, \"bytes_per_trace\": %.1f, \"address_us\": %.3f}\n", best,
                static_cast<double>(bytes) / 1000, once.columns().tags.values.at(0) * 1e6);
}
