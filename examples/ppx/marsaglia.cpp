// The Gaussian with unknown mean again, its mean drawn by a rejection loop (Marsaglia and Bray 1964).
#include <etalumis/simulator.hpp>

#include <cmath>

using etalumis::Normal;
using etalumis::Uniform;

double polar_normal(double mean, double stddev) {
    while (true) {
        const double x = etalumis::sample(Uniform(-1.0, 1.0));
        const double y = etalumis::sample(Uniform(-1.0, 1.0));
        const double s = x * x + y * y;
        if (s > 0.0 && s < 1.0) return mean + stddev * x * std::sqrt(-2.0 * std::log(s) / s);
    }
}

double marsaglia() {
    const double mu = polar_normal(1.0, std::sqrt(5.0));
    etalumis::observe(Normal(mu, std::sqrt(2.0)), "obs0");
    etalumis::observe(Normal(mu, std::sqrt(2.0)), "obs1");
    etalumis::tag(mu, "mu");
    return mu;
}

int main(int argc, char** argv) {
    etalumis::serve(marsaglia, "marsaglia", argc > 1 ? argv[1] : "tcp://*:5555");
}
