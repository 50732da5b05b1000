// A chain of ten normal variables, each seen with noise.
#include <etalumis/simulator.hpp>

#include <string>

using etalumis::Normal;

double linear_gaussian() {
    double x = etalumis::sample(Normal(0.0, 1.0), "x0");
    etalumis::observe(Normal(x, 1.0), "obs0");
    for (int k = 1; k < 10; ++k) {
        x = etalumis::sample(Normal(0.9 * x, 0.5), "x" + std::to_string(k));
        etalumis::observe(Normal(x, 1.0), "obs" + std::to_string(k));
    }
    return x;
}

int main(int argc, char** argv) {
    etalumis::serve(linear_gaussian, "LinearGaussian", argc > 1 ? argv[1] : "tcp://*:5555");
}
