// Sherpa 2.2: every random number of the generator is a draw.
//
// Include this in exactly one source file. Compiled into the program that links Sherpa and calls
// `SHERPA::Sherpa::GenerateOneEvent` from its model, or into a library libEtalumisRandom.so that Sherpa loads with
// SHERPA_LDADD=EtalumisRandom; the run card chooses it with EXTERNAL_RNG=Etalumis. What is drawn while Sherpa
// initialises, outside of the model, belongs to no trace.
#pragma once

#include <ATOOLS/Math/Random.H>

#include <cstddef>
#include <ostream>

#include "etalumis/random.hpp"

namespace etalumis {

class SherpaRandom final : public ATOOLS::External_RNG {
  public:
    double Get() override { return etalumis::flat(); }
};

}  // namespace etalumis

DECLARE_GETTER(etalumis::SherpaRandom, "Etalumis", ATOOLS::External_RNG, ATOOLS::RNG_Key);

ATOOLS::External_RNG* ATOOLS::Getter<ATOOLS::External_RNG, ATOOLS::RNG_Key, etalumis::SherpaRandom>::operator()(
    const ATOOLS::RNG_Key&) const {
    return new etalumis::SherpaRandom();  // Sherpa owns it
}

void ATOOLS::Getter<ATOOLS::External_RNG, ATOOLS::RNG_Key, etalumis::SherpaRandom>::PrintInfo(std::ostream& out,
                                                                                              const std::size_t) const {
    out << "random numbers decided by an inference engine, through etalumis";
}
