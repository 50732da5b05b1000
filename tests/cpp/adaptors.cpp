// Generators of four libraries, each routed through PPX, in one model: against the libraries' headers, or the minimal
// declarations of the folder `minimal`.
#include <vector>

#include "etalumis/adaptors/clhep.hpp"
#include "etalumis/adaptors/gsl.hpp"
#include "etalumis/adaptors/pythia8.hpp"
#include "etalumis/adaptors/sherpa.hpp"

namespace {

double before_the_model = etalumis::PythiaRandom().flat();  // belongs to no trace

}  // namespace

etalumis::Tensor generators() {
    etalumis::PythiaRandom pythia;
    Pythia8::RndmEngine& through_pythia = pythia;
    etalumis::SherpaRandom sherpa;
    ATOOLS::External_RNG& through_sherpa = sherpa;
    etalumis::ClhepEngine clhep;
    CLHEP::HepRandomEngine& through_clhep = clhep;
    const gsl_rng_type* gsl = etalumis::gsl_generator();
    double numbers[7] = {through_pythia.flat(), through_sherpa.Get()};
    through_clhep.flatArray(2, &numbers[2]);
    numbers[4] = gsl->get_double(nullptr);
    numbers[5] = static_cast<double>(gsl->get(nullptr)) / (static_cast<double>(gsl->max) + 1.0);
    numbers[6] = before_the_model;
    return etalumis::Tensor(std::vector<double>(numbers, numbers + 7));
}

int main(int, char** argv) {
    etalumis::serve(generators, "generators", argv[1]);
}
