// CLHEP, and with it Geant4: every random number of the engine is a draw.
//
//     etalumis::ClhepEngine engine;
//     CLHEP::HepRandom::setTheEngine(&engine);   // Geant4: G4Random::setTheEngine(&engine)
#pragma once

#include <CLHEP/Random/RandomEngine.h>

#include <string>

#include "etalumis/random.hpp"

namespace etalumis {

/// Has no state of its own: seeds and status files mean nothing to it.
class ClhepEngine final : public CLHEP::HepRandomEngine {
  public:
    double flat() override { return etalumis::flat(); }
    void flatArray(const int size, double* numbers) override {
        for (int i = 0; i < size; ++i) numbers[i] = etalumis::flat();
    }
    void setSeed(long, int) override {}
    void setSeeds(const long*, int) override {}
    void saveStatus(const char[]) const override {}
    void restoreStatus(const char[]) override {}
    void showStatus() const override {}
    std::string name() const override { return "etalumis::ClhepEngine"; }
    operator double() override { return flat(); }
    operator float() override { return static_cast<float>(flat()); }
    operator unsigned int() override { return static_cast<unsigned int>(flat() * 0x1p32); }
};

}  // namespace etalumis
