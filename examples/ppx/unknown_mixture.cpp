// Points from a mixture of normal distributions whose number of components is unknown, too.
#include <etalumis/simulator.hpp>

#include <string>
#include <vector>

using etalumis::Categorical;
using etalumis::Normal;

double unknown_mixture() {
    const auto count = etalumis::sample(Categorical{1.0 / 3, 1.0 / 3, 1.0 / 3}, "count") + 1;
    std::vector<double> means;
    for (int k = 0; k < count; ++k) {
        means.push_back(etalumis::sample(Normal(0.0, 2.0), "mean" + std::to_string(k)));
    }
    const Categorical components(std::vector<double>(means.size(), 1.0 / static_cast<double>(count)));
    for (int n = 0; n < 4; ++n) {
        const auto component = etalumis::sample(components, "component" + std::to_string(n));
        etalumis::observe(Normal(means[static_cast<std::size_t>(component)], 1.0), "obs" + std::to_string(n));
    }
    return static_cast<double>(count);
}

int main(int argc, char** argv) {
    etalumis::serve(unknown_mixture, "UnknownMixture", argc > 1 ? argv[1] : "tcp://*:5555");
}
