// Answers requests for draws and log densities line by line, numbers as exact hexadecimal literals.
//   draw FAMILY SEED INDEX ORDINAL KIND N NUMBERS…      log_prob FAMILY VALUE N NUMBERS…
//   array SEED INDEX ORDINAL KIND                        (a few fixed array distributions, all elements)
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "etalumis/array.hpp"

using namespace etalumis;

namespace {

double number() {
    std::string text;
    std::cin >> text;
    return std::stod(text);
}

std::vector<double> numbers() {
    std::vector<double> out(static_cast<std::size_t>(number()));
    for (double& x : out) x = number();
    return out;
}

template <class Use>
void scalar(int tag, const std::vector<double>& p, Use&& use) {
    with_family(tag, [&](auto* family) {
        using Family = std::remove_pointer_t<decltype(family)>;
        if constexpr (std::is_same_v<Family, Categorical>) {
            use(Categorical(p));
        } else if constexpr (Family::parameter_count == 1) {
            use(Family(p.at(0)));
        } else {
            use(Family(p.at(0), p.at(1)));
        }
    });
}

Statement statement() {
    const auto seed = static_cast<std::uint64_t>(number());
    const auto index = static_cast<std::uint64_t>(number());
    const auto ordinal = static_cast<std::uint64_t>(number());
    return {{seed, index}, number() == 0.0 ? Kind::sample : Kind::observe, ordinal};
}

void show(const Distribution& distribution, const Statement& at) {
    std::vector<double> value(distribution.size());
    distribution.draw(at, value.data());
    for (const double x : value) std::printf("%a ", x);
    std::printf("%a\n", distribution.log_prob(value.data()));
}

}  // namespace

int main() {
    std::string verb;
    while (std::cin >> verb) {
        if (verb == "draw") {
            const int tag = static_cast<int>(number());
            const Statement at = statement();
            scalar(tag, numbers(), [&](const Distribution& d) { show(d, at); });
        } else if (verb == "log_prob") {
            const int tag = static_cast<int>(number());
            const double value = number();
            scalar(tag, numbers(), [&](const Distribution& d) { std::printf("%a\n", d.log_prob(&value)); });
        } else {
            const Statement at = statement();
            show(Array<Normal>(Tensor({0.0, 1.0, 2.0, 3.0, 4.0, 5.0}, {2, 3}), Tensor({1.0, 2.0, 0.5})), at);
            show(Array<Uniform>(Tensor({-1.0, 0.0}, {2, 1}), Tensor({1.0, 2.0, 4.0})), at);
            show(Array<Categorical>(Tensor({1.0, 2.0, 3.0, 3.0, 0.0, 1.0}, {2, 3})), at);
            show(Array<Poisson>(Tensor({3.0, 30.0, 300.0})), at);
            show(Array<Bernoulli>(Tensor({0.2, 0.5, 0.9})), at);
            show(Array<Beta>(2.0, Tensor({0.3, 3.0})), at);
            show(Array<Exponential>(Tensor({0.2, 2.0})), at);
            show(Array<Gamma>(Tensor({0.3, 3.0}), 2.0), at);
            show(Array<LogNormal>(Tensor({0.3, 3.0}), 2.0), at);
            show(Array<Binomial>(Tensor({3.0, 300.0}), 0.3), at);
            show(Array<Weibull>(2.0, Tensor({0.3, 3.0})), at);
        }
    }
    return 0;
}
