// A Gaussian with unknown mean: the smallest simulator.
#include <etalumis/simulator.hpp>

#include <cmath>

using etalumis::Normal;

double gaussian() {
    const double mu = etalumis::sample(Normal(1.0, std::sqrt(5.0)), "mu");
    etalumis::observe(Normal(mu, std::sqrt(2.0)), "obs0");
    etalumis::observe(Normal(mu, std::sqrt(2.0)), "obs1");
    etalumis::tag(mu * mu, "mu_squared");
    return mu;
}

int main(int argc, char** argv) {
    etalumis::serve(gaussian, "gaussian", argc > 1 ? argv[1] : "tcp://*:5555");
}
