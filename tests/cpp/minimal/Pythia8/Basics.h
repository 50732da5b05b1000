// As much of Pythia 8's interface as the adaptor needs.
#pragma once

namespace Pythia8 {

class RndmEngine {
  public:
    virtual ~RndmEngine() {}
    virtual double flat() { return 1; }
};

}  // namespace Pythia8
