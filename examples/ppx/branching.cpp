// A second draw happens only where the first is small.
#include <etalumis/simulator.hpp>

using etalumis::Poisson;

double fibonacci(long n) {
    double a = 1.0, b = 1.0;
    for (long i = 1; i < n; ++i) {
        const double next = a + b;
        a = b;
        b = next;
    }
    return a;
}

double branching() {
    const auto r = etalumis::sample(Poisson(4.0), "r");
    double rate = 6.0;
    if (r <= 4) rate = 1.0 + fibonacci(3 * r) + static_cast<double>(etalumis::sample(Poisson(4.0)));
    etalumis::observe(Poisson(rate), "obs0");
    return static_cast<double>(r);
}

int main(int argc, char** argv) {
    etalumis::serve(branching, "branching", argc > 1 ? argv[1] : "tcp://*:5555");
}
