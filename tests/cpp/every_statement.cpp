// The model `linear` of inference_checks.py: a draw that is not controlled, one that is conditioned, a known factor.
#include <etalumis/simulator.hpp>

using etalumis::Normal;

void linear() {
    const double a = etalumis::sample(Normal(0.0, 1.0), "a");
    const double b = etalumis::sample(Normal(a, 1.0), "b", false);
    etalumis::sample(Normal(b, 1.0), "c");
    etalumis::observe(Normal(a, 1.0), 0.5, "half");
    etalumis::observe(Normal(a + b, 1.0), "y");
}

int main(int, char** argv) {
    etalumis::serve(linear, "linear", argv[1]);
}
