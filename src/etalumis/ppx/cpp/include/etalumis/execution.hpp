// One run of a model: what a statement does with what it is told. `Interactive` asks the engine at every statement;
// `Scripted` (scripted.hpp) answers from a request and the stream of random numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "etalumis/address.hpp"
#include "etalumis/distribution.hpp"
#include "etalumis/messages.hpp"

namespace etalumis {

/// Leaves a model before its end. Not a std::exception, so that a model's own handlers let it pass.
struct EndOfExecution {};

/// What a statement is called: its name ("" where unnamed) and its explicit address ("" for the call stack).
struct Label {
    std::string_view name;
    std::string_view address;
};

/// Sends a message to the engine and waits for the answer, which is valid until the next exchange.
class Channel {
  public:
    virtual wire::Table exchange(const wire::Writer& message) = 0;

  protected:
    ~Channel() = default;
};

class Execution {
  public:
    explicit Execution(AddressBook& book) : book_(book) {}
    virtual ~Execution() = default;
    Execution(const Execution&) = delete;
    Execution& operator=(const Execution&) = delete;

    /// The execution that the calling thread runs, or null.
    [[gnu::visibility("default")]] static Execution*& current() {
        static thread_local Execution* running = nullptr;
        return running;
    }

    CallStack stack;      ///< of the statement being made, where it has no explicit address
    bool unwinds = true;  ///< leave a model by an exception; else let it run on, with prior draws that nobody records

    void sample(const Distribution& distribution, const Label& label, bool control, double* value) {
        if (!over_ && on_sample(distribution, label, control, value)) return;
        leave();
        distribution.draw(Statement({UINT64_MAX, UINT64_MAX}, Kind::sample, spare_++), value);
    }
    void observe(const Distribution& distribution, const Label& label, const View* value) {
        if (over_ || !on_observe(distribution, label, value)) leave();
    }
    void tag(const View& value, const Label& label) {
        if (over_ || !on_tag(value, label)) leave();
    }
    /// A marker of a rejection loop: a pass begins, or ("@accepted ") the one that began last is accepted.
    void mark(std::string_view kind, std::string_view loop) {
        std::string address(kind);
        address += loop;
        if (over_ || !on_mark(address)) leave();
    }
    /// The execution has ended; what the model still does is not part of it.
    bool over() const { return over_; }
    /// The model can't go on, and says why instead of throwing an exception.
    void give_up(std::string why) {
        if (over_) return;
        over_ = true;
        failure_ = std::move(why);
    }
    const std::string& failure() const { return failure_; }

  protected:
    // Each returns whether the execution goes on.
    virtual bool on_sample(const Distribution& distribution, const Label& label, bool control, double* value) = 0;
    virtual bool on_observe(const Distribution& distribution, const Label& label, const View* value) = 0;
    virtual bool on_tag(const View& value, const Label& label) = 0;
    virtual bool on_mark(std::string_view address) = 0;

    std::uint32_t base(const Label& label) { return label.address.empty() ? book_.id(stack) : book_.id(label.address); }
    void start() {
        over_ = false;
        failure_.clear();
    }

    AddressBook& book_;

  private:
    void leave() {
        over_ = true;
        if (unwinds) throw EndOfExecution{};
    }
    bool over_ = false;
    std::string failure_;
    std::uint64_t spare_ = 0;
};

/// Every statement is a message to the engine, as in PPX 1.0.0.
class Interactive final : public Execution {
  public:
    Interactive(AddressBook& book, Channel& channel, wire::Writer& out)
        : Execution(book), channel_(channel), out_(out) {}

  private:
    bool on_sample(const Distribution& distribution, const Label& label, bool control, double* value) override {
        wire::write_sample(out_, book_[base(label)], label.name, distribution, control);
        return ask(Body::sample_result, [&](const wire::Table& answer) {
            const std::vector<double> drawn = wire::read_sample_result(answer, distribution.size());
            std::copy(drawn.begin(), drawn.end(), value);
        });
    }
    bool on_observe(const Distribution& distribution, const Label& label, const View* value) override {
        wire::write_observe(out_, book_[base(label)], label.name, distribution, value);
        return ask(Body::observe_result, [](const wire::Table&) {});
    }
    bool on_tag(const View& value, const Label& label) override {
        wire::write_tag(out_, book_[base(label)], label.name, value);
        return ask(Body::tag_result, [](const wire::Table&) {});
    }
    bool on_mark(std::string_view address) override {
        const double nothing = 0.0;  // the engine counts the draws itself
        return on_tag({&nothing, 1, detail::no_shape}, {{}, address});
    }
    template <class Read>
    bool ask(Body expected, Read&& read) {
        try {
            const wire::Table answer = channel_.exchange(out_);
            if (wire::kind(answer) != expected) return false;
            read(answer);
            return true;
        } catch (const ProtocolError&) {
            return false;  // the caller answers any unexpected message with Reset
        }
    }

    Channel& channel_;
    wire::Writer& out_;
};

}  // namespace etalumis
