// The model `loop` of inference_checks.py: a rejection loop whose acceptance depends on what is inferred.
#include <etalumis/simulator.hpp>

using etalumis::Normal;
using etalumis::Uniform;

void loop() {
    const double m = etalumis::sample(Uniform(0.0, 1.0), "m");
    double x = 1.0;
    do {
        x = etalumis::sample(Uniform(0.0, 1.0));
    } while (x >= 0.2 + 0.8 * m);
    etalumis::observe(Normal(x, 0.1), "y");
}

int main(int, char** argv) {
    etalumis::serve(loop, "loop", argv[1]);
}
