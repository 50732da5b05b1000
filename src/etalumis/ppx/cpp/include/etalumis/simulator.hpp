// A simulator as a probabilistic program: `sample`, `observe` and `tag` inside of a model function, `serve` around it.
//
//     double gaussian() {
//         const double mu = etalumis::sample(etalumis::Normal(1.0, 2.2), "mu");
//         etalumis::observe(etalumis::Normal(mu, 1.4), "obs0");
//         return mu;
//     }
//     int main() { etalumis::serve(gaussian, "gaussian", "tcp://*:5555"); }
//
// Threads: each thread may run one simulator of its own, with its own socket; nothing is shared between them. The
// statements of an execution belong to the thread that runs the model, one at a time: a model that works in several
// threads draws in the one that was called and hands the numbers out.
//
// Where the engine ends an execution before its end, the statement throws `EndOfExecution`, which is no std::exception
// and must be let through (`simulator.unwind(false)` for code that can't be left by an exception).
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "etalumis/array.hpp"
#include "etalumis/connection.hpp"
#include "etalumis/distributions.hpp"
#include "etalumis/execution.hpp"
#include "etalumis/scripted.hpp"

namespace etalumis {

namespace detail {

inline Execution& running(const char* statement) {
    Execution* execution = Execution::current();
    if (execution == nullptr) {
        throw std::logic_error(std::string(statement) + " was called outside of a running model, or in another thread");
    }
    return *execution;
}

/// Ready for a statement made by the function that this is inlined into.
[[gnu::always_inline]] inline Execution& statement(const char* what, std::string_view address) {
    Execution& execution = running(what);
    if (address.empty()) execution.stack.capture();
    return execution;
}

/// Calls a model in a frame of its own, never inlined: the chain of calls starts there.
template <class Model>
[[gnu::noinline]] auto call(Model& model) {
    return model();
}
template <class Result>
[[gnu::always_inline]] inline Result call(Result (*&model)()) {
    auto function = model;
    asm volatile("" : "+r"(function));  // NOLINT: the compiler must not know which function it is
    return function();
}

inline View view(const Tensor& tensor) {
    return {tensor.data.data(), tensor.size(), tensor.shape};
}

}  // namespace detail

/// Draws a random variable of the model: a double, an integer for discrete families, a Tensor for arrays.
///
/// `name` is how engines call it, `control` lets a network propose it, `address` replaces the call stack.
template <class Family>
[[gnu::noinline]] typename Family::value_type sample(const Family& distribution, std::string_view name = {},
                                                     bool control = true, std::string_view address = {}) {
    Execution& execution = detail::statement("sample", address);
    if constexpr (std::is_same_v<typename Family::value_type, Tensor>) {
        Tensor value(std::vector<double>(distribution.size()), distribution.shape());
        execution.sample(distribution, {name, address}, control, value.data.data());
        return value;
    } else {
        double value = 0.0;
        execution.sample(distribution, {name, address}, control, &value);
        return static_cast<typename Family::value_type>(value);
    }
}

/// Conditions the model: the engine supplies the observed value under this name.
[[gnu::noinline]] inline void observe(const Distribution& distribution, std::string_view name = {},
                                      std::string_view address = {}) {
    detail::statement("observe", address).observe(distribution, {name, address}, nullptr);
}

/// Conditions the model on a value that the simulator knows.
[[gnu::noinline]] inline void observe(const Distribution& distribution, const Tensor& value, std::string_view name = {},
                                      std::string_view address = {}) {
    const View view = detail::view(value);
    detail::statement("observe", address).observe(distribution, {name, address}, &view);
}

[[gnu::noinline]] inline void observe(const Distribution& distribution, double value, std::string_view name = {},
                                      std::string_view address = {}) {
    const View view{&value, 1, detail::no_shape};
    detail::statement("observe", address).observe(distribution, {name, address}, &view);
}

/// Records a quantity with the trace. A name serves as the address, too, where none is given.
[[gnu::noinline]] inline void tag(const Tensor& value, std::string_view name = {}, std::string_view address = {}) {
    if (address.empty()) address = name;
    detail::statement("tag", address).tag(detail::view(value), {name, address});
}
[[gnu::noinline]] inline void tag(double value, std::string_view name = {}, std::string_view address = {}) {
    if (address.empty()) address = name;
    detail::statement("tag", address).tag({&value, 1, detail::no_shape}, {name, address});
}

/// Marks that a pass of this rejection loop begins: the draws up to the next marker of the loop are its.
///
///     do {
///         etalumis::rejection_pass("angle");
///         angle = etalumis::sample(Uniform(-1.0, 1.0));
///     } while (!accepted(angle));
///     etalumis::rejection_accept("angle");
///
/// What the model does later may depend on the accepted pass only, a pass on nothing of the passes before it, and
/// nothing may be observed inside. Loops within loops need names of their own, and the inner one ends first.
[[gnu::noinline]] inline void rejection_pass(std::string_view loop) {
    detail::running("rejection_pass").mark("@pass ", loop);
}

/// Marks that the pass which began last was accepted: the rejection loop is over.
[[gnu::noinline]] inline void rejection_accept(std::string_view loop) {
    Execution& execution = detail::running("rejection_accept");
    execution.mark("@accepted ", loop);
    execution.mark("@pass ", loop);
}

/// Serves one model to engines. The model is any function of no arguments that returns nothing, a number or a Tensor.
class Simulator {
  public:
    template <class Model>
    Simulator(Model model, std::string name) : name_(std::move(name)) {
        model_ = [model](Execution& execution) mutable -> std::optional<Tensor> {
            const char mark = 0;
            execution.stack.set_root(&mark);
            if constexpr (std::is_void_v<decltype(model())>) {
                detail::call(model);
                return std::nullopt;
            } else {
                return Tensor(detail::call(model));
            }
        };
    }

    /// How an execution that ends early leaves the model: by an exception, or (false) not at all: its further draws
    /// come from the prior and are not recorded until it returns.
    Simulator& unwind(bool by_exception) {
        unwinds_ = by_exception;
        return *this;
    }

    /// Answers engines at this address, one after the other, for ever.
    void serve(const std::string& address) {
        Connection connection(address);
        std::optional<Scripted> scripted(std::in_place, book_, &connection, &out_);
        bool errors = false;  // the engine understands Error
        while (true) {
            try {
                const wire::Table message = connection.receive();
                const Body kind = wire::kind(message);
                if (kind == Body::handshake) {
                    errors = false;
                    for (const auto capability : wire::body(message).strings(1)) errors |= capability == "error";
                    scripted.emplace(book_, &connection, &out_);
                    wire::write_handshake_result(out_, name_);
                } else if (kind == Body::run && wire::body(message).has(0)) {
                    run_scripted(*scripted, wire::read_request(wire::body(message).table(0)));
                } else if (kind == Body::run) {
                    run_interactive(connection, errors);
                } else {
                    wire::write_reset(out_);
                }
            } catch (const ProtocolError&) {
                wire::write_reset(out_);
            } catch (const std::bad_alloc&) {
                scripted->discard();
                say_error("memory does not suffice: ask for fewer traces", errors);
            } catch (const std::length_error& error) {
                scripted->discard();
                say_error(error.what(), errors);
            }
            connection.send(out_);
        }
    }

    /// Runs the executions of a request and leaves what was said in `scripted.columns()`. Needs no connection.
    void run(Scripted& scripted, Request request) {
        scripted.begin(std::move(request));
        const std::uint32_t count = scripted.request().count;
        for (std::uint32_t i = 0; i < count && !scripted.failed() && !scripted.abandoned(); ++i) {
            scripted.start(scripted.request().first_index + i);
            std::string error;
            const std::optional<Tensor> result = execute(scripted, error);
            if (!error.empty()) scripted.fail(error);
            const View view = result ? detail::view(*result) : View{nullptr, 0, detail::no_shape};
            scripted.finish(result ? &view : nullptr);
        }
    }

    AddressBook& addresses() { return book_; }

  private:
    void run_scripted(Scripted& scripted, Request request) {
        run(scripted, std::move(request));
        if (scripted.abandoned()) {
            scripted.discard();
            return wire::write_reset(out_);
        }
        scripted.write(out_);
    }
    void run_interactive(Connection& connection, bool errors) {
        Interactive execution(book_, connection, out_);
        std::string error;
        const std::optional<Tensor> result = execute(execution, error);
        if (!error.empty()) return say_error(error, errors);
        if (execution.over()) return wire::write_reset(out_);
        const View view = result ? detail::view(*result) : View{nullptr, 0, detail::no_shape};
        wire::write_run_result(out_, result ? &view : nullptr);
    }
    void say_error(const std::string& text, bool understood) {
        std::cerr << name_ << ": " << text << std::endl;
        if (understood) return wire::write_error(out_, text);
        wire::write_reset(out_);
    }

    /// Runs the model once. Where it throws, `error` says what; an execution that was ended is no error.
    [[gnu::noinline]] std::optional<Tensor> execute(Execution& execution, std::string& error) {
        struct Current {
            explicit Current(Execution* execution) : before(Execution::current()) { Execution::current() = execution; }
            ~Current() { Execution::current() = before; }
            Execution* before;
        } const current(&execution);
        execution.unwinds = unwinds_;
        std::optional<Tensor> result;
        try {
            result = model_(execution);
        } catch (const EndOfExecution&) {
        } catch (const std::exception& caught) {
            if (!execution.over()) error = caught.what();
        } catch (...) {
            if (!execution.over()) error = "the model threw something that is not a std::exception";
        }
        if (!execution.failure().empty()) error = execution.failure();
        if (execution.over()) result.reset();
        return result;
    }

    std::function<std::optional<Tensor>(Execution&)> model_;
    std::string name_;
    AddressBook book_;
    wire::Writer out_;
    bool unwinds_ = true;
};

/// Serves a model at an address, for ever.
template <class Model>
void serve(Model model, const std::string& name, const std::string& address) {
    Simulator(std::move(model), name).serve(address);
}

}  // namespace etalumis
