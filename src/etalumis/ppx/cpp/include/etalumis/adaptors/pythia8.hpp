// Pythia 8: every random number of the generator is a draw.
//
//     Pythia8::Pythia pythia;
//     pythia.setRndmEnginePtr(std::make_shared<etalumis::PythiaRandom>());   // before pythia.init()
//     pythia.init();
//     etalumis::serve([&] { pythia.next(); return pythia.event.size() * 1.0; }, "pythia", address);
#pragma once

#include <Pythia8/Basics.h>

#include "etalumis/random.hpp"

namespace etalumis {

class PythiaRandom final : public Pythia8::RndmEngine {
  public:
    double flat() override { return etalumis::flat(); }
};

}  // namespace etalumis
