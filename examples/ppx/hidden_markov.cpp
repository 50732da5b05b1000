// A chain of hidden states, each seen through a Gaussian. The model is an object with the function operator.
#include <etalumis/simulator.hpp>

#include <string>
#include <vector>

using etalumis::Categorical;
using etalumis::Normal;

class HiddenMarkov {
  public:
    double operator()() {
        auto state = etalumis::sample(first_, "state0");
        etalumis::observe(emission_[state], "obs0");
        for (int step = 1; step < 16; ++step) {
            state = etalumis::sample(next_[state], "state" + std::to_string(step));
            etalumis::observe(emission_[state], "obs" + std::to_string(step));
        }
        return static_cast<double>(state);
    }

  private:
    Categorical first_{1.0 / 3, 1.0 / 3, 1.0 / 3};
    std::vector<Categorical> next_{{0.1, 0.5, 0.4}, {0.2, 0.2, 0.6}, {0.15, 0.15, 0.7}};
    std::vector<Normal> emission_{{-1.0, 1.0}, {1.0, 1.0}, {0.0, 1.0}};
};

int main(int argc, char** argv) {
    etalumis::serve(HiddenMarkov(), "HiddenMarkov", argc > 1 ? argv[1] : "tcp://*:5555");
}
