// The C interface over the C++ front end. No exception leaves this file.
#include "etalumis/ppx.h"

#include <cmath>
#include <exception>
#include <iostream>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "etalumis/random.hpp"
#include "etalumis/simulator.hpp"

namespace {

using namespace etalumis;

std::string_view text(const char* given) {
    return given == nullptr ? std::string_view() : std::string_view(given);
}

Shape shape_of(int rank, const int* shape) {
    return rank == 0 ? Shape() : Shape(shape, shape + rank);
}

Tensor parameter(const etalumis_distribution& d, int i, const Shape& shape) {
    if (d.array[i] == nullptr) return d.number[i];
    return Tensor(std::vector<double>(d.array[i], d.array[i] + count(shape)), shape);
}

/// Calls `use` with the distribution as a C++ object.
template <class Use>
void with_distribution(const etalumis_distribution& d, Use&& use) {
    const Shape shape = shape_of(d.rank, d.shape);
    with_family(d.family, [&](auto* family) {
        using Family = std::remove_pointer_t<decltype(family)>;
        if constexpr (std::is_same_v<Family, Categorical>) {
            if (d.array[0] == nullptr || d.categories < 1) throw std::invalid_argument("Categorical needs weights");
            Shape axes = shape;
            axes.push_back(d.categories);
            Tensor weights(std::vector<double>(d.array[0], d.array[0] + count(axes)), axes);
            if (d.rank == 0) return use(Categorical(std::move(weights.data)));
            return use(Array<Categorical>(std::move(weights)));
        } else if constexpr (Family::parameter_count == 1) {
            if (d.rank == 0) return use(Family(d.number[0]));
            return use(Array<Family>(Tensor(broadcast_to(parameter(d, 0, shape), shape), shape)));
        } else {
            if (d.rank == 0) return use(Family(d.number[0], d.number[1]));
            return use(
                Array<Family>(Tensor(broadcast_to(parameter(d, 0, shape), shape), shape), parameter(d, 1, shape)));
        }
    });
}

/// Makes a statement; what is wrong with it ends the execution.
template <class Make>
void say(Execution& execution, Make&& make) {
    try {
        make();
    } catch (const std::exception& error) {
        execution.give_up(error.what());
    } catch (...) {
        execution.give_up("an unknown exception");
    }
}

/// The execution that a statement belongs to, its call stack read where it has no explicit address.
[[gnu::always_inline]] inline Execution* statement(const char* what, const char* address) {
    Execution* execution = Execution::current();
    if (execution == nullptr) {
        std::cerr << what << " was called outside of a running model, or in another thread" << std::endl;
        return nullptr;
    }
    if (text(address).empty()) execution->stack.capture();
    return execution;
}

void draw(Execution& execution, const etalumis_distribution& distribution, double* value, const char* name, int control,
          const char* address) {
    say(execution, [&] {
        with_distribution(distribution, [&](const Distribution& d) {
            execution.sample(d, {text(name), text(address)}, control != 0, value);
        });
    });
}

}  // namespace

extern "C" {

int etalumis_serve(etalumis_model model, void* data, const char* name, const char* address) {
    try {
        const auto call = [model, data] {
            const char mark = 0;
            Execution::current()->stack.set_root(&mark);  // the chain of calls starts at the C function
            const double result = model(data);
            asm volatile("" : : "r"(&mark));  // NOLINT: not a tail call
            return result;
        };
        Simulator(call, std::string(text(name))).unwind(false).serve(std::string(text(address)));
    } catch (const std::exception& error) {
        std::cerr << text(name) << ": " << error.what() << std::endl;
    }
    return 1;
}

double etalumis_sample(etalumis_distribution distribution, const char* name, int control, const char* address) {
    double value = std::numeric_limits<double>::quiet_NaN();
    Execution* execution = statement("etalumis_sample", address);
    if (execution == nullptr) return value;
    if (distribution.rank != 0) {
        execution->give_up("etalumis_sample draws a number; use etalumis_sample_array for arrays");
        return value;
    }
    draw(*execution, distribution, &value, name, control, address);
    return value;
}

void etalumis_sample_array(etalumis_distribution distribution, double* value, const char* name, int control,
                           const char* address) {
    if (Execution* execution = statement("etalumis_sample_array", address)) {
        draw(*execution, distribution, value, name, control, address);
    }
}

void etalumis_observe(etalumis_distribution distribution, const double* value, const char* name, const char* address) {
    Execution* execution = statement("etalumis_observe", address);
    if (execution == nullptr) return;
    say(*execution, [&] {
        with_distribution(distribution, [&](const Distribution& d) {
            const View view{value, d.size(), d.shape()};
            execution->observe(d, {text(name), text(address)}, value == nullptr ? nullptr : &view);
        });
    });
}

void etalumis_tag(const double* value, int rank, const int* shape, const char* name, const char* address) {
    const std::string_view place = text(address).empty() ? text(name) : text(address);
    Execution* execution = statement("etalumis_tag", place.data());
    if (execution == nullptr) return;
    say(*execution, [&] {
        const Shape extents = shape_of(rank, shape);
        execution->tag({value, count(extents), extents}, {text(name), place});
    });
}

void etalumis_rejection_pass(const char* loop) {
    if (Execution* execution = statement("etalumis_rejection_pass", "@")) {
        say(*execution, [&] { execution->mark("@pass ", text(loop)); });
    }
}

void etalumis_rejection_accept(const char* loop) {
    if (Execution* execution = statement("etalumis_rejection_accept", "@")) {
        say(*execution, [&] {
            execution->mark("@accepted ", text(loop));
            execution->mark("@pass ", text(loop));
        });
    }
}

double etalumis_flat(void) {
    const double value = flat();
    asm volatile("");  // NOLINT: not a tail call, so that this frame is part of every chain
    return value;
}

int etalumis_ended(void) {
    const Execution* execution = Execution::current();
    return execution == nullptr || execution->over() ? 1 : 0;
}

void etalumis_fail(const char* why) {
    if (Execution* execution = Execution::current()) {
        const std::string_view reason = text(why);
        execution->give_up(std::string(reason.empty() ? "the model gave up" : reason));
    }
}

}  // extern "C"
