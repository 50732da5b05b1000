// The loop of marked_loops.cpp without markers, told by the address of its draws; a draw follows it.
#include <etalumis/simulator.hpp>

using etalumis::Normal;
using etalumis::Uniform;

void unmarked() {
    const double m = etalumis::sample(Uniform(0.0, 1.0), "m");
    double x = 1.0;
    do {
        x = etalumis::sample(Uniform(0.0, 1.0), "x", true, "loop");
    } while (x >= 0.2 + 0.8 * m);
    etalumis::sample(Normal(0.0, 1.0), {}, false, "behind");
    etalumis::observe(Normal(x, 0.1), "y");
}

int main(int, char** argv) {
    etalumis::serve(unmarked, "unmarked", argv[1]);
}
