// As much of CLHEP's interface as the adaptor needs.
#pragma once

#include <string>

namespace CLHEP {

class HepRandomEngine {
  public:
    virtual ~HepRandomEngine() {}
    virtual double flat() = 0;
    virtual void flatArray(const int size, double* vect) = 0;
    virtual void setSeed(long seed, int) = 0;
    virtual void setSeeds(const long* seeds, int) = 0;
    virtual void saveStatus(const char filename[] = "Config.conf") const = 0;
    virtual void restoreStatus(const char filename[] = "Config.conf") = 0;
    virtual void showStatus() const = 0;
    virtual std::string name() const = 0;
    virtual operator double() = 0;
    virtual operator float() = 0;
    virtual operator unsigned int() = 0;
};

}  // namespace CLHEP
