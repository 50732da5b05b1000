// Sherpa 2.2 as a probabilistic program: e+ e- -> tau+ tau- at the Z pole with all decays, one event per execution.
//
//     tau_pairs ADDRESS [Sherpa's own options, as RUNDATA=Run.dat]
//
// Every random number that Sherpa asks for is a draw of Uniform(0, 1) at the call stack that asks for it. What is
// measured is the visible energy; tags hold the particles that reach the detector and the visible energy of each τ.
#include <etalumis/adaptors/sherpa.hpp>

#include <ATOOLS/Org/Exception.H>
#include <ATOOLS/Phys/Blob_List.H>
#include <PHASIC++/Decays/Decay_Map.H>
#include <SHERPA/Initialization/Initialization_Handler.H>
#include <SHERPA/Main/Sherpa.H>
#include <SHERPA/Single_Events/Decay_Handler_Base.H>

#include <cmath>
#include <csignal>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int attempts = 100;  // at an event: Sherpa gives one up where its energies do not add up

bool visible(const ATOOLS::Flavour& flavour) {
    const auto code = flavour.Kfcode();
    return code != 12 && code != 14 && code != 16;  // neutrinos leave no trace in a detector
}

/// The PDG code of the τ that a particle stems from, 0 where there is none.
int ancestor(const ATOOLS::Particle* particle) {
    while (const ATOOLS::Blob* blob = particle->ProductionBlob()) {
        if (blob->NInP() != 1) return 0;
        particle = blob->ConstInParticle(0);
        if (particle->Flav().Kfcode() == 15) return particle->Flav().IsAnti() ? -15 : 15;
    }
    return 0;
}

}  // namespace

/// Sherpa, set up once; each event is a function of its random numbers alone.
class TauPairs {
  public:
    TauPairs(int argc, char** argv) {
        if (!sherpa_.InitializeTheRun(argc, argv) || !sherpa_.InitializeTheEventHandler()) {
            throw std::runtime_error("Sherpa could not be initialised");
        }
        SHERPA::Decay_Handler_Base* decays = sherpa_.GetInitHandler()->GetHDHandler();
        if (decays == nullptr) throw std::runtime_error("the run card must switch FRAGMENTATION and DECAYMODEL on");
        for (const auto& entry : *decays->DecayMap()) {
            for (const PHASIC::Decay_Table* table : entry.second) {
                for (PHASIC::Decay_Channel* channel : *table) maxima_.emplace_back(channel, channel->Max());
            }
        }
    }

    /// Generates one event and returns the number of its final particles.
    double event() {
        generate();
        std::vector<double> particles;
        double energy = 0.0;
        double minus = 0.0;
        double plus = 0.0;
        for (const ATOOLS::Blob* blob : sherpa_.GetBlobList()) {
            for (int n = 0; n < blob->NOutP(); ++n) {
                const ATOOLS::Particle* particle = blob->ConstOutParticle(static_cast<std::size_t>(n));
                if (particle->DecayBlob() != nullptr) continue;
                const ATOOLS::Vec4D& momentum = particle->Momentum();
                const int tau = ancestor(particle);
                particles.push_back(static_cast<double>(static_cast<long>(particle->Flav())));
                for (int i = 0; i < 4; ++i) particles.push_back(momentum[i]);
                if (!visible(particle->Flav())) continue;
                energy += momentum[0];
                if (tau == 15) minus += momentum[0];
                if (tau == -15) plus += momentum[0];
            }
        }
        const int count = static_cast<int>(particles.size()) / 5;
        etalumis::tag(etalumis::Tensor(std::move(particles), {count, 5}), "particles");  // PDG code, E, px, py, pz
        etalumis::tag(minus, "tau_minus_visible");
        etalumis::tag(plus, "tau_plus_visible");
        etalumis::observe(etalumis::Normal(energy, std::sqrt(1.0 + 0.25 * energy)), "visible_energy");  // in GeV
        return count;
    }

  private:
    void generate() {
        // Where a decay turns out likelier than the maximum that Sherpa knows, Sherpa raises the maximum, and later
        // events would depend on earlier ones.
        for (const auto& [channel, maximum] : maxima_) channel->SetMax(maximum);
        try {
            for (int i = 0; i < attempts; ++i) {
                if (sherpa_.GenerateOneEvent()) return;
            }
        } catch (const ATOOLS::Exception& error) {
            throw std::runtime_error("Sherpa: " + error.Info());
        }
        throw std::runtime_error("Sherpa gave no event in " + std::to_string(attempts) + " attempts");
    }

    SHERPA::Sherpa sherpa_;
    std::vector<std::pair<PHASIC::Decay_Channel*, double>> maxima_;
};

/// The model: a type with a name, for the addresses to have one.
struct TauPairEvent {
    TauPairs* pairs;
    double operator()() const { return pairs->event(); }
};

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "usage: tau_pairs ADDRESS [Sherpa's options, as RUNDATA=Run.dat]" << std::endl;
        return 2;
    }
    const std::string address = argv[1];
    std::vector<char*> options(argv, argv + argc + 1);  // with the closing null
    options.erase(options.begin() + 1);
    try {
        TauPairs pairs(argc - 1, options.data());
        for (const int signal : {SIGTERM, SIGINT}) std::signal(signal, SIG_DFL);  // Sherpa would write a report
        // Sherpa's own bookkeeping would not survive an exception thrown through it: an execution that is ended early
        // runs on, unrecorded.
        etalumis::Simulator(TauPairEvent{&pairs}, "sherpa_tau_pairs").unwind(false).serve(address);
    } catch (const ATOOLS::Exception& error) {
        std::cerr << "Sherpa: " << error.Info() << std::endl;
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
    }
    return 1;
}
