// The models of test_inference_rejection.py with marked loops: `ADDRESS marked|nested|long_tail|observing`.
#include <etalumis/simulator.hpp>

#include <string>

using etalumis::Normal;
using etalumis::rejection_accept;
using etalumis::rejection_pass;
using etalumis::sample;
using etalumis::Uniform;

void marked() {
    const double m = sample(Uniform(0.0, 1.0), "m");
    double x = 1.0;
    do {
        rejection_pass("x");
        x = sample(Uniform(0.0, 1.0), "x", true, "loop");
    } while (x >= 0.2 + 0.8 * m);
    rejection_accept("x");
    etalumis::observe(Normal(x, 0.1), "y");
}

void nested() {
    const double m = sample(Uniform(0.0, 1.0), "m");
    double u = 1.0;
    do {
        rejection_pass("outer");
        do {
            rejection_pass("inner");
            u = sample(Uniform(0.0, 1.0), "u");
        } while (u >= 0.2 + 0.8 * m);
        rejection_accept("inner");
    } while (sample(Uniform(0.0, 1.0), "v") >= u);
    rejection_accept("outer");
    etalumis::observe(Normal(u, 0.1), "y");
}

/// Draws thousands of numbers behind its loop: an extra execution that was not stopped would take them all.
void long_tail() {
    marked();
    for (int k = 0; k < 2000; ++k) sample(Normal(0.0, 1.0), {}, false, "tail");
}

/// Observes in every pass, which can't be meant.
void observing() {
    double x = 1.0;
    do {
        rejection_pass("x");
        x = sample(Uniform(0.0, 1.0), "x");
        etalumis::observe(Normal(x, 0.1), 0.5);
    } while (x >= 0.5);
    rejection_accept("x");
    etalumis::observe(Normal(x, 0.1), "y");
}

int main(int argc, char** argv) {
    const std::string model = argc > 2 ? argv[2] : "";
    const auto chosen = model == "nested"      ? nested
                        : model == "long_tail" ? long_tail
                        : model == "observing" ? observing
                                               : marked;
    etalumis::serve(chosen, model, argv[1]);
}
